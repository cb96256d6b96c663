"""Bits flipped and files cut at random, in every kind of file: an error of one line, or nothing changed.

``SLAMKERN_TRIALS=300 pytest -m campaign tests/campaigns/test_damage.py``; the counts go to ``results/damage.json``.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_run import tiny_run

from slamkern.errors import SlamkernError
from slamkern.files import load_tensors, read_checked
from slamkern.pipeline import run
from slamkern.probe.stats import ActivationStats
from slamkern.run_folder import read_record
from slamkern.schemas.predictions import read_predictions
from slamkern.selection.layers import LayerSelection

pytestmark = pytest.mark.campaign
TRIALS = int(os.environ.get("SLAMKERN_TRIALS", "300"))
READERS: dict[str, Callable[[Path], Any]] = {
    "stats.safetensors": ActivationStats.load,
    "selection.json": LayerSelection.load,
    "run.json": lambda path: read_record(path, "pipeline"),
    "metrics.json": read_checked,
    "evaluation/after.json": read_checked,
    "evaluation/after/evaluation.json": lambda path: read_record(path, "evaluation"),
    "evaluation/after/predictions.jsonl": read_predictions,
    "train/run.json": lambda path: read_record(path, "training"),
    "train/delta.safetensors": lambda path: load_tensors(path, "delta"),
    "train/checkpoint-3/training-state.safetensors": lambda path: load_tensors(path, "training state"),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


def test_damage_is_an_error_or_nothing(tmp_path: Path) -> None:
    run.run(tiny_run(tmp_path), tmp_path / "run", progress=False)
    random.seed(0)
    counts: dict[str, Counter[str]] = {}
    odd: list[str] = []
    for name, read in READERS.items():
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        expected = read(path)
        counts[name] = Counter(refused=0, unaffected=0, silent=0, traceback=0)
        for trial in range(TRIALS):
            damaged = bytearray(whole)
            if trial % 4 == 3:
                damaged = damaged[: random.randrange(len(whole))]
            else:
                damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
            path.write_bytes(damaged)
            try:
                outcome = "unaffected" if same(read(path), expected) else "silent"
            except SlamkernError as error:
                outcome = "refused" if "\n" not in str(error) else "traceback"
            except Exception as error:
                outcome = "traceback"
                odd.append(f"{name}: {error!r}")
            else:
                if outcome == "silent":
                    odd.append(f"{name}: {bytes(damaged[-90:])!r}")
            counts[name][outcome] += 1
        path.write_bytes(whole)
    result = {"trials": TRIALS, "files": {name: dict(count) for name, count in counts.items()}, "odd": odd[:20]}
    (Path(__file__).parent / "results" / "damage.json").write_text(json.dumps(result, indent=2) + "\n")
    assert not any(count["silent"] or count["traceback"] for count in counts.values()), result
