"""Bits flipped and files cut at random, in every file of a run that anything reads."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slamkern.errors import SlamkernError
from slamkern.files import write_checked
from slamkern.pipeline.verify import verify
from slamkern.probe.stats import ActivationStats
from slamkern.run_folder import read_record
from slamkern.schemas.metrics import read_measurement, read_metrics
from slamkern.schemas.predictions import read_predictions
from slamkern.schemas.replies import read_replies_file
from slamkern.schemas.training import read_delta, read_held_out, read_state, read_steps
from slamkern.selection.layers import LayerSelection

# What is only looked at: nothing is computed from these.
SHOWN = (".png", ".html", ".txt")


def _whole_log(path: Path) -> Any:
    """How many lines there should be is known to the record beside the log only."""
    if problems := verify(path.parent)[1]:
        raise SlamkernError(problems[0])
    return read_steps(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "stats.safetensors": ActivationStats.load,
    "selection.json": LayerSelection.load,
    "run.json": lambda path: read_record(path, "training" if path.parent.name == "train" else "pipeline"),
    "metrics.json": read_metrics,
    "before.json": read_measurement,
    "after.json": read_measurement,
    "evaluation.json": lambda path: read_record(path, "evaluation"),
    "predictions.jsonl": read_predictions,
    "metrics.jsonl": _whole_log,
    "held_out.json": read_held_out,
    "replies.json": read_replies_file,
    "delta.safetensors": read_delta,
    "training-state.safetensors": read_state,
}


def add_rare_files(run: Path) -> None:
    """The files of a run that only some runs have."""
    write_checked(run / "train" / "held_out.json", {"before": 7.5, "after": 7.25})
    reply = {"question": "How many?", "reply": "It is 3.", "ended": True}
    settings = {"weights": "0" * 64, "dtype": "float32", "prompt": "chat", "max_new_tokens": 8, "questions": ["1"]}
    write_checked(run / "replies.json", {"settings": settings, "replies": [reply]})


def files_of(run: Path) -> list[Path]:
    """Every file of a run that is more than looked at."""
    return sorted(path for path in run.rglob("*") if path.is_file() and path.suffix not in SHOWN)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


def damage(path: Path, trials: int, draw: random.Random) -> tuple[Counter[str], list[str]]:
    """(how often damage was refused, made no difference, was silent or an error that nobody caught; the bad cases).

    Every fourth time the file is cut, otherwise a bit is flipped. The file is left as it was.
    """
    read = READERS[path.name]
    whole = path.read_bytes()
    expected = read(path)
    counts = Counter(refused=0, unaffected=0, silent=0, traceback=0)
    odd = []
    for trial in range(trials):
        damaged = bytearray(whole)
        if trial % 4 == 3:
            damaged = damaged[: draw.randrange(len(whole))]
        else:
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            outcome = "unaffected" if same(read(path), expected) else "silent"
        except SlamkernError as error:
            outcome = "refused" if "\n" not in str(error) else "traceback"
        except Exception as error:
            outcome = "traceback"
            odd.append(f"{path.name}: {error!r:.200}")
        else:
            odd += [f"{path.name}: {bytes(damaged[-90:])!r}"] if outcome == "silent" else []
        counts[outcome] += 1
    path.write_bytes(whole)
    return counts, odd
