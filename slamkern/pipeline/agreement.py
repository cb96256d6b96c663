"""Do the files of a run belong together? What one says of another, where each by itself is what was written."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from slamkern.errors import DamagedFileError
from slamkern.pipeline.sections import RunConfig
from slamkern.pipeline.stages import choose_layers
from slamkern.run_folder import read_record
from slamkern.schemas.check import check
from slamkern.schemas.metrics import read_measurement, read_metrics
from slamkern.schemas.predictions import KIND, SETTINGS_FILE
from slamkern.schemas.training import DELTA, read_steps
from slamkern.selection.layers import LayerSelection
from slamkern.training.checkpoint import SELECTION

STATS, RECORD, METRICS, LOG = "stats.safetensors", "run.json", "metrics.json", "metrics.jsonl"
REPLIES, BEFORE, AFTER = "replies.json", "evaluation/before.json", "evaluation/after.json"
# What each finished stage of a pipeline has left.
STAGES = {
    "probe": [STATS], "select": [SELECTION], "replies": [REPLIES], "before": [BEFORE],
    "train": [f"train/{DELTA}", f"train/{SELECTION}"], "after": [AFTER], "report": [METRICS],
}  # fmt: skip


def check_pipeline(folder: Path) -> RunConfig:
    """The configuration in the record of a run whose finished stages have left what they write."""
    settings, notes = read_record(folder / RECORD, "pipeline")
    config = check(RunConfig, json.dumps(settings), "settings")
    done = notes.get("seconds") or {}
    files = [name for stage, names in STAGES.items() if stage in done for name in names]
    if gone := [name for name in files if not (folder / name).exists()]:
        raise DamagedFileError(f"says that {', '.join(gone)} was written, but it is gone")
    return config


def check_measurement(path: Path) -> dict[str, Any]:
    """The values of a measurement, after comparing its scores with those of the answers beside it."""
    values = read_measurement(path)
    answers = path.with_suffix("") / SETTINGS_FILE
    if values["evaluation"] is not None:
        if not answers.exists():
            raise DamagedFileError(f"{path} has scores, but {answers} is gone")
        if values["evaluation"] != read_record(answers, KIND)[1].get("result"):
            raise DamagedFileError(f"{path} has other scores than {answers}")
    return values


def check_metrics(folder: Path) -> None:
    """metrics.json against what it was put together from."""
    values, (settings, notes) = read_metrics(folder / METRICS), read_record(folder / RECORD, "pipeline")
    rows = read_steps(folder / "train" / LOG)
    parts: dict[str, tuple[Any, str]] = {
        "config": (settings, RECORD),
        "base_weights": (notes.get("base_weights"), RECORD),
        "selected_layers": (list(LayerSelection.load(folder / SELECTION).layers), SELECTION),
        "losses": ([row["loss"] for row in rows], f"train/{LOG}"),
        "before": (read_measurement(folder / BEFORE), BEFORE),
        "after": (read_measurement(folder / AFTER), AFTER),
    }
    for name, (value, file) in parts.items():
        if values.get(name) != value:
            raise DamagedFileError(f"{name} is not what {file} says")


def check_selection(folder: Path) -> None:
    """selection.json of a run against the statistics it was made from: the choice is made again."""
    config = check_pipeline(folder)
    once = config.select.model_copy(update={"bootstrap": 0})  # resampling says how stable it is, not what it is
    again = choose_layers(config.model_copy(update={"select": once}), folder / STATS)
    chosen = LayerSelection.load(folder / SELECTION)
    for name, value in again.to_dict().items():
        there = chosen.to_dict()[name]
        if name == "scores":  # another machine adds in another order
            same = np.shape(value) == np.shape(there) and np.allclose(value, there, rtol=1e-6, atol=1e-9)
        else:
            same = name == "stability" or value == there
        if not same:
            raise DamagedFileError(f"{name} is not what {STATS} gives")
