"""What a run took and what it gained, among the results: ``python -m benchmarks.recipe FOLDER --name NAME``.

FOLDER is what ``slamkern run --out FOLDER`` wrote, with answers before and after; `slamkern.compare` judges them, once
in all languages and once without English. The minutes are the run's own, summed where it was resumed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from slamkern.evaluation.compare import Change, compare
from slamkern.files import write_json
from slamkern.run_folder import read_record
from slamkern.schemas.metrics import read_metrics

ENGLISH = "en"


def rows_of(folder: Path) -> list[results.Row]:
    """A row a language, and one for the mean of all but English, with the verdicts on losses."""
    before, after = (folder / "evaluation" / name for name in ("before", "after"))
    found = compare(before, after)
    rows = []
    for code, change in found.languages.items():
        cut = [drift.truncated for drift in found.drift[code]]
        rows.append(_row(code, change) | {"cut_before": cut[0], "cut_after": cut[1]})
    others = [code for code in found.languages if code != ENGLISH]
    rest = compare(before, after, languages=others, drift=False)
    average = _row("all but English", rest.average)
    return [*rows, average | {"losses": {name: change.verdict for name, change in found.losses.items()}}]


def _row(language: str, change: Change) -> results.Row:
    return {
        "language": language, "questions": change.n, "before": change.before, "after": change.after,
        "difference": change.difference, "low": change.interval[0], "high": change.interval[1],
        "gained": change.gained, "lost": change.lost, "verdict": change.verdict,
    }  # fmt: skip


def costs_of(folder: Path) -> Iterator[results.Row]:
    """Minutes in all and of each stage, peak memory of training, and what was trained."""
    _, notes = read_record(folder / "run.json", "pipeline")
    seconds: dict[str, float] = notes["seconds"]
    yield {"what": "all stages", "value": sum(seconds.values()) / 60, "unit": "minutes"}
    for stage, taken in seconds.items():
        yield {"what": stage, "value": taken / 60, "unit": "minutes"}
    metrics: dict[str, Any] = read_metrics(folder / "metrics.json")
    share = 100 * metrics["trained_parameters"] / metrics["total_parameters"]
    yield {"what": "trained parameters", "value": share, "unit": "%"}
    yield {"what": "peak memory of training", "value": metrics["peak_memory_bytes"] / 1e9, "unit": "GB"}


def main(argv: Sequence[str] | None = None) -> int:
    options = results.folder_options("recipe", __doc__, argv)
    settings, _ = read_record(options.folder / "run.json", "pipeline")
    cpu = torch.device("cpu")
    stage = {"environment": results.environment(cpu), "command": "slamkern run --recipe NAME --out FOLDER"}
    study = {"model": Path(settings["model"]["name"]).name} | {
        name: settings[name] for name in ("align", "probe", "select", "train", "evaluate")
    }
    study["evaluate"] = {name: value for name, value in study["evaluate"].items() if name != "data"}  # a place
    stages = {
        "recipe": {**stage, "study": study, "rows": rows_of(options.folder)},
        "recipe_costs": {**stage, "rows": list(costs_of(options.folder))},
    }
    path = options.results / f"recipe-{options.name}.json"
    write_json(path, {"device": results.device_name(cpu), "stages": stages})
    print(f"{path}: {len(stages['recipe']['rows'])} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
