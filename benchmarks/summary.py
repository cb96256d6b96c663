"""What a user wants to know first, in six lines: each result on a CPU, with its machine, and beside it on a GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results import Row
from benchmarks.stage import cell

NOT_MEASURED = "not measured yet"
Rows = Mapping[str, Sequence[Row]]  # the rows of one machine, by stage


def _row(rows: Rows, stage: str, **fields: Any) -> Row:
    return next((row for row in rows.get(stage, ()) if fields.items() <= row.items()), {})


def _probe(rows: Rows) -> str | None:
    found = _row(rows, "probe", variant="slamkern").get("against_hooks")
    return None if found is None else f"{cell(found)} x the speed"


def _step(other: str) -> Callable[[Rows], str | None]:
    def speed(rows: Rows) -> str | None:
        found = _row(rows, "train", variant=other).get("against_slamkern")
        return None if found is None else f"{cell(found)} x the speed"

    return speed


def _memory(rows: Rows) -> str | None:
    ours, theirs = (_row(rows, "train", variant=name).get("peak_gb") for name in ("slamkern", "hf_freeze_packed"))
    return None if ours is None or theirs is None else f"{cell(ours)} GB instead of {cell(theirs)} GB"


def _overhead(rows: Rows) -> str | None:
    goals = rows.get("goals", ())
    found = next((row["measured"] for row in goals if row["goal"].startswith("host time of a patched FFN call")), None)
    return None if found is None else f"{cell(found)} us"


# What, the stage it is read from, how.
LINES: Sequence[tuple[str, str, Callable[[Rows], str | None]]] = (
    ("probe with statistics, against forward hooks", "probe", _probe),
    ("training step, against full fine-tuning (`full`)", "train", _step("full")),
    ("training step, against freezing in transformers (`hf_freeze`)", "train", _step("hf_freeze")),
    ("the same with packed batches (`hf_freeze_packed`)", "train", _step("hf_freeze_packed")),
    ("peak memory of a training step, against `hf_freeze_packed`", "train", _memory),
    ("host time that a patched FFN call adds", "goals", _overhead),
)


def summary(files: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A line a result: the value of the first file that has it, of a CPU and of a GPU, each with its machine."""
    lines = []
    for what, stage, read in LINES:
        line = {"": what, "CPU": NOT_MEASURED, "machine": "", "GPU": NOT_MEASURED}
        for content in reversed(files):  # so that the first one stays
            rows = {name: entry["rows"] for name, entry in content["stages"].items()}
            value = read(rows)
            if value is None:
                continue
            if "threads" in content["device"]:
                model = next((row["model"] for row in rows[stage] if row.get("model")), "")
                line |= {"CPU": value, "machine": ", ".join(filter(None, (content["device"], model)))}
            else:
                line["GPU"] = f"{value} ({content['device']})"
        lines.append(line)
    return lines
