"""Is a folder what slamkern wrote, all of it? Hashes, schemas, steps and values of every file of ours in it.

A pipeline's folder is checked with the training and the evaluations inside; the folder of a single stage, a checkpoint
and a delta by themselves. What a killed process was writing last is no problem: the same command goes on there. Not
checked is what only shows the rest again (report, figures, samples.txt, scores.json). Nothing is repaired, no model is
loaded.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from slamkern.digests import combined_digest
from slamkern.errors import DamagedFileError, SlamkernError
from slamkern.evaluation.scoring import summarize
from slamkern.modules.finite import check_finite
from slamkern.pipeline import two_models
from slamkern.pipeline.agreement import (
    AFTER,
    BEFORE,
    LOG,
    METRICS,
    RECORD,
    REPLIES,
    STATS,
    check_measurement,
    check_metrics,
    check_pipeline,
    check_selection,
)
from slamkern.probe.stats import ActivationStats
from slamkern.reading import read_json
from slamkern.run_folder import read_record
from slamkern.schemas.metrics import read_metrics
from slamkern.schemas.predictions import KIND, PREDICTIONS_FILE, SETTINGS_FILE, read_predictions
from slamkern.schemas.replies import read_replies_file
from slamkern.schemas.training import DELTA, STATE, read_delta, read_held_out, read_state, read_steps
from slamkern.selection.layers import LayerSelection
from slamkern.training import run_log
from slamkern.training.checkpoint import NAMES, SELECTION, list_checkpoints

HELD_OUT = "held_out.json"
Check = tuple[Path, Callable[[], Any]]


def verify(folder: str | Path) -> tuple[list[Path], list[str]]:
    """(files that are as they were written, problems in one line each).

    SlamkernError for a folder that holds no file of ours.
    """
    folder = Path(folder)
    good, problems = run_checks(checks(folder))
    if not good and not problems:
        raise SlamkernError(f"{folder} holds no file that slamkern writes; give the folder of a run or of one stage")
    if not problems and (metrics := folder / METRICS).exists():
        together = [(metrics, lambda: check_metrics(folder)), (folder / SELECTION, lambda: check_selection(folder))]
        problems = run_checks(together)[1]
    return good, problems


def run_checks(checks: Iterable[Check]) -> tuple[list[Path], list[str]]:
    """(files that passed, what the others have wrong); a check raises SlamkernError or OSError."""
    good: list[Path] = []
    problems: list[str] = []
    for path, work in checks:
        try:
            work()
        except (SlamkernError, OSError) as error:
            text = " ".join(str(error).split())
            problems.append(text if str(path) in text else f"{path}: {text}")
        else:
            good.append(path)
    return good, problems


def checks(folder: Path) -> Iterator[Check]:
    """All that can be told from each file of a folder and from those it belongs to."""
    if (stats := folder / STATS).exists():
        yield stats, lambda: ActivationStats.load(stats)
    if (folder / SETTINGS_FILE).exists() or (folder / PREDICTIONS_FILE).exists():
        yield from _evaluation(folder)
    kind = _kind(folder)
    if kind == run_log.KIND:
        yield from _training(folder)
    elif (folder / f"{STATE}.safetensors").exists():
        yield from _checkpoint(folder, {})
    elif (folder / DELTA).exists():
        yield from _delta(folder, {})
    elif (chosen := folder / SELECTION).exists():
        yield chosen, lambda: LayerSelection.load(chosen)
    if (compared := folder / two_models.RECORD).exists():
        yield compared, lambda: read_record(compared, two_models.KIND)
    elif kind == "pipeline":
        yield folder / RECORD, lambda: check_pipeline(folder)
    if (replies := folder / REPLIES).exists():
        yield replies, lambda: read_replies_file(replies)
    for name in (BEFORE, AFTER):
        if (measured := folder / name).exists():
            yield measured, lambda measured=measured: check_measurement(measured)  # type: ignore[misc]
    if (metrics := folder / METRICS).exists():
        yield metrics, lambda: read_metrics(metrics)
    for inner in (folder / "train", *sorted((folder / "evaluation").glob("*/"))):
        if inner.is_dir():
            yield from checks(inner)


def _kind(folder: Path) -> str | None:
    """Of the record in a folder, or of what lies there if it is gone or cannot be read."""
    record = folder / RECORD
    if (folder / LOG).exists() or list_checkpoints(folder) or ((folder / DELTA).exists() and record.exists()):
        return run_log.KIND
    if not record.exists():
        return "pipeline" if any((folder / name).exists() for name in (METRICS, BEFORE, AFTER)) else None
    try:
        values = read_json(record)
    except SlamkernError:
        return "pipeline"
    return run_log.KIND if isinstance(values, dict) and values.get("kind") == run_log.KIND else "pipeline"


def _evaluation(folder: Path) -> Iterator[Check]:
    path = folder / PREDICTIONS_FILE
    result: dict[str, Any] = {}

    def record() -> None:
        result.update(read_record(folder / SETTINGS_FILE, KIND)[1].get("result") or {})

    def predictions() -> None:
        rows = read_predictions(path, torn=not result)
        counted = {code: sum(row.language == code for row in rows) for code in {row.language for row in rows}}
        if any(number > counted.get(code, 0) for code, number in result.get("n", {}).items()):
            raise DamagedFileError(f"holds {counted} predictions by language, but the result is of {result['n']}")
        if result and counted == result["n"]:  # where more were answered, which ones counted is not known
            about: dict[str, Any] = {name: result.get(name) for name in ("task", "model", "prompt", "max_new_tokens")}
            order = list(result["n"])
            again = summarize(sorted(rows, key=lambda row: order.index(row.language)), **about).to_dict()
            if odd := [name for name in again if again[name] != result.get(name)]:
                raise DamagedFileError(f"gives another {odd[0]} than {SETTINGS_FILE} says")

    yield folder / SETTINGS_FILE, record
    if result or path.exists():
        yield path, predictions


def _training(folder: Path) -> Iterator[Check]:
    run: dict[str, Any] = {}

    def record() -> None:
        settings, notes = read_record(folder / RECORD, run_log.KIND)
        run.update(settings | notes, fingerprint=run_log.RunLog(None, settings).fingerprint)

    def log() -> None:
        finished = (folder / DELTA).exists()
        saved = [_step(checkpoint) for checkpoint in list_checkpoints(folder)]
        started = (folder / LOG).exists() or finished or saved
        done = len(read_steps(folder / LOG, torn=not finished)) if started else 0
        steps = run.get("steps", done)
        if finished and done != steps:
            raise DamagedFileError(f"holds {done} steps of a finished run of {steps}")
        if not max(saved, default=0) <= done <= steps:
            raise DamagedFileError(f"holds {done} steps; {max(saved, default=0)} are saved of a run of {steps}")

    def held_out() -> None:
        if (folder / DELTA).exists() and read_held_out(folder / HELD_OUT).get("after") is None:
            raise DamagedFileError("holds no loss after a finished training")

    yield folder / RECORD, record
    yield folder / LOG, log
    if (folder / HELD_OUT).exists() or ((folder / DELTA).exists() and run.get("held_out_data")):
        yield folder / HELD_OUT, held_out
    finished = (folder / DELTA).exists()
    noted = {folder / f"checkpoint-{step}" for step in run.get("checkpoints", ()) if finished}
    for checkpoint in sorted(noted.union(list_checkpoints(folder)), key=_step):
        yield from _checkpoint(checkpoint, run)
    if finished:
        yield from _delta(folder, run)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoint(folder: Path, run: dict[str, Any]) -> Iterator[Check]:
    path = folder / f"{STATE}.safetensors"

    def state() -> None:
        tensors, metadata = read_state(path)
        check_finite(tensors, "the checkpoint cannot be used")
        if folder.name != f"checkpoint-{metadata.step}":
            raise DamagedFileError(f"is of step {metadata.step}")
        if metadata.fingerprint != run.get("fingerprint", metadata.fingerprint):
            raise DamagedFileError("belongs to another run")
        moments = {name.partition("exp_avg/")[2] for name in tensors if name.startswith("optimizer/exp_avg/")}
        _same_names(moments, run)

    yield path, state
    yield from _delta(folder, run)


def _same_names(names: set[str], run: dict[str, Any]) -> None:
    if odd := names ^ set(run.get("trained", names)):
        raise DamagedFileError(f"holds other tensors than the run trains (first: {min(odd)})")


def _delta(folder: Path, run: dict[str, Any]) -> Iterator[Check]:
    path, chosen = folder / DELTA, folder / SELECTION

    def delta() -> None:
        _, tensors, metadata = read_delta(path)
        check_finite(tensors, "the delta cannot be used")
        names = {name for name in tensors if not name.endswith(tuple(f"@neurons.{axis}" for axis in NAMES))}
        _same_names(names, run)
        trained = {name.removesuffix("@neurons") for name in run.get("trained", ())}
        frozen = combined_digest({n: digest for n, digest in metadata.frozen_weights.items() if n not in trained})
        if frozen != run.get("frozen_weights", frozen):
            raise DamagedFileError("was trained on other weights than the run")

    def selection() -> None:
        layers = set(map(str, LayerSelection.load(chosen).layers))
        changed = {part for name in read_delta(path)[1] for part in name.split(".") if part.isdigit()}
        if not layers <= changed:
            raise DamagedFileError(f"selects layer {min(layers - changed)}, which {path} does not change")

    yield path, delta
    if chosen.exists() or run.get("selection"):
        yield chosen, selection
