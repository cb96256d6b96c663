"""A whole run under torchrun and accelerate launch is that of one process.

One, two and four processes (gloo, on the CPU) probe, select, train, answer and report; what differs from one
process, and from a second run, goes to ``results/ranks.json``: ``pytest -m campaign tests/campaigns/test_ranks.py``.
Two processes under torchrun are an ordinary test.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_causal_lm import ending_model, save_folder

from slamkern.cli.main import main
from slamkern.files import load_tensors, write_json
from slamkern.probe.stats import ActivationStats
from slamkern.version import installed_version

RESULTS = Path(__file__).parent / "results" / "ranks.json"
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "{}", "--rdzv-backend", "c10d",
                 "--rdzv-endpoint", "localhost:0"],
    "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "{}", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
}  # fmt: skip
# 17 micro-batches dealt three a step: the last step is short, and of four processes one has nothing in each.
SETTINGS = {
    "data.limit": 24, "data.held_out": 2, "probe.questions": 6, "probe.groups": 3, "probe.token_budget": 256,
    "select.k": 1, "select.bootstrap": 10, "train.prompt": "authors", "train.tokens_per_batch": 512,
    "train.gradient_accumulation_steps": 3, "train.num_train_epochs": 1, "train.adam_epsilon": 1e-3,
    "evaluate.task": "corpus", "evaluate.limit": 3, "evaluate.languages": "[en,de]", "evaluate.prompt": "authors",
    "evaluate.max_new_tokens": 4, "evaluate.chrf_limit": 1, "evaluate.english": "corpus:",
}  # fmt: skip


def start(launcher: str, processes: int, model: Path, out: Path, **changes: Any) -> float:
    """One whole run, of one process in this one; returns its seconds."""
    words = ["run", "--model", str(model), "--data", "corpus:", "-l", "de,zh", "--out", str(out)]
    for name, value in {**SETTINGS, **changes}.items():
        words += ["-s", f"{name}={value}"]
    started = time.perf_counter()
    if processes == 1:
        assert main(words) == 0
        return time.perf_counter() - started
    command = [sys.executable, *(word.format(processes) for word in LAUNCHERS[launcher]), "-m", "slamkern", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - started


def between(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far two runs are apart."""
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs)]
    stats = [ActivationStats.load(folder / "stats.safetensors") for folder in (ours, theirs)]
    deltas = [load_tensors(folder / "train" / "delta.safetensors", "delta")[0] for folder in (ours, theirs)]
    answers = [(folder / "evaluation" / "after" / "predictions.jsonl").read_bytes() for folder in (ours, theirs)]
    assert deltas[0].keys() == deltas[1].keys()
    return {
        "counts_equal": all(torch.equal(getattr(stats[0], n), getattr(stats[1], n)) for n in ("count", "active")),
        "selection_equal": metrics[0]["selected_layers"] == metrics[1]["selected_layers"],
        "answers_equal": answers[0] == answers[1],
        "steps": [metric["steps"] for metric in metrics],
        "largest_relative_difference_of_losses": max(
            abs(a - b) / abs(b) for a, b in zip(metrics[0]["losses"], metrics[1]["losses"], strict=True)
        ),
        "largest_difference_of_weights": max(
            float((tensor - deltas[1][name]).abs().max()) for name, tensor in deltas[0].items()
        ),
    }


def is_the_same(found: dict[str, Any]) -> bool:
    """To rounding."""
    exact = found["counts_equal"] and found["selection_equal"] and found["answers_equal"]
    close = found["largest_relative_difference_of_losses"] < 1e-5 and found["largest_difference_of_weights"] < 1e-5
    return exact and close and found["steps"][0] == found["steps"][1] > 3


def test_a_run_under_torchrun_is_that_of_one_process(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", ending_model())
    start("torchrun", 1, tmp_path / "model", tmp_path / "one")
    start("torchrun", 2, tmp_path / "model", tmp_path / "two")
    found = between(tmp_path / "two", tmp_path / "one")
    assert is_the_same(found), found
    start("torchrun", 1, tmp_path / "model", tmp_path / "other", **{"train.learning_rate": 3e-5})
    assert not is_the_same(between(tmp_path / "other", tmp_path / "one"))


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_two_and_four_processes_end_where_one_does(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", ending_model())
    one = tmp_path / "one"
    seconds = {"one process": start("torchrun", 1, tmp_path / "model", one)}
    rows: dict[str, dict[str, Any]] = {}
    for launcher in LAUNCHERS:
        for processes in (2, 4):
            for sharded in (False, True):
                name = f"{launcher}, {processes} processes{', sharded' * sharded}"
                changes = {"train.fsdp": "true"} if sharded else {}
                folders = [tmp_path / f"{name} {number}" for number in (1, 2)]
                seconds[name] = start(launcher, processes, tmp_path / "model", folders[0], **changes)
                rows[name] = between(folders[0], one)
                start(launcher, processes, tmp_path / "model", folders[1], **changes)
                again = between(folders[1], folders[0])
                rows[name]["repeated_bitwise"] = again["largest_difference_of_weights"] == 0
                rows[name]["repeated_losses_bitwise"] = again["largest_relative_difference_of_losses"] == 0
    versions = {name: installed_version(name) for name in ("torch", "accelerate", "transformers")}
    write_json(RESULTS, {"versions": versions, "seconds": seconds, "against_one_process": rows})
    assert all(is_the_same(row) and row["repeated_bitwise"] for row in rows.values()), rows
