"""A whole run under torchrun and accelerate launch is that of one process.

One, two and four processes (gloo, on the CPU) probe, select, train, answer and report; what differs from one
process, and from a second run, goes to ``results/ranks.json``: ``pytest -m campaign tests/campaigns/test_ranks.py``.
Two processes under torchrun are an ordinary test.
"""

import itertools
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
    # Without --multi_gpu accelerate starts one process, whatever is asked for; with it, here too, as many as are named.
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "{}", "--num_machines", "1",
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


def start(launcher: str, processes: int, command: list[str], out: Path, **changes: Any) -> float:
    """One command to its end, of one process in this one; returns its seconds."""
    words = [*command, "--data", "corpus:", "-l", "de,zh", "--out", str(out)]
    for name, value in {**SETTINGS, **changes}.items():
        words += ["-s", f"{name}={value}"]
    started = time.perf_counter()
    if processes == 1:
        assert main(words) == 0
        return time.perf_counter() - started
    launch = [sys.executable, *(word.format(processes) for word in LAUNCHERS[launcher]), "-m", "slamkern", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - started


def trained_apart(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far two trainings are apart."""
    deltas = [load_tensors(folder / "delta.safetensors", "delta")[0] for folder in (ours, theirs)]
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (ours, theirs)
    ]
    assert deltas[0].keys() == deltas[1].keys()
    return {
        "steps": [len(values) for values in losses],
        "largest_relative_difference_of_losses": max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True)),
        "largest_difference_of_weights": max(
            float((tensor - deltas[1][name]).abs().max()) for name, tensor in deltas[0].items()
        ),
    }


def apart(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far two whole runs are apart."""
    chosen = [json.loads((folder / "metrics.json").read_text())["selected_layers"] for folder in (ours, theirs)]
    stats = [ActivationStats.load(folder / "stats.safetensors") for folder in (ours, theirs)]
    answers = [(folder / "evaluation" / "after" / "predictions.jsonl").read_bytes() for folder in (ours, theirs)]
    return {
        "counts_equal": all(torch.equal(getattr(stats[0], n), getattr(stats[1], n)) for n in ("count", "active")),
        "selection_equal": chosen[0] == chosen[1],
        "answers_equal": answers[0] == answers[1],
        **trained_apart(ours / "train", theirs / "train"),
    }


def is_the_same(found: dict[str, Any]) -> bool:
    """To rounding."""
    exact = all(value for name, value in found.items() if name.endswith("_equal"))
    close = found["largest_relative_difference_of_losses"] < 1e-5 and found["largest_difference_of_weights"] < 1e-5
    return exact and close and found["steps"][0] == found["steps"][1] > 3


def test_a_run_under_torchrun_is_that_of_one_process(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", ending_model())
    command = ["run", "--model", str(tmp_path / "model")]
    start("torchrun", 1, command, tmp_path / "one")
    start("torchrun", 2, command, tmp_path / "two")
    found = apart(tmp_path / "two", tmp_path / "one")
    assert is_the_same(found), found
    start("torchrun", 1, command, tmp_path / "other", **{"train.learning_rate": 3e-5})
    assert not is_the_same(apart(tmp_path / "other", tmp_path / "one"))


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_two_and_four_processes_end_where_one_does(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", ending_model())
    options = ["--model", str(tmp_path / "model")]
    one = tmp_path / "one"
    seconds = {"one process, run": start("torchrun", 1, ["run", *options], one)}
    sharded = ["train", *options, "--selection", str(one), "-s", "train.fsdp=true"]
    kinds = {"run": (["run", *options], apart, one), "train, sharded": (sharded, trained_apart, one / "train")}
    rows: dict[str, dict[str, Any]] = {}
    for launcher, processes, kind in itertools.product(LAUNCHERS, (2, 4), kinds):
        name, (command, difference, expected) = f"{launcher}, {processes} processes, {kind}", kinds[kind]
        first, second = tmp_path / f"{name} 1", tmp_path / f"{name} 2"
        seconds[name] = start(launcher, processes, command, first)
        rows[name] = difference(first, expected)
        start(launcher, processes, command, second)
        again = difference(second, first)
        same = again["largest_difference_of_weights"] == again["largest_relative_difference_of_losses"] == 0
        rows[name]["repeated_bitwise"] = same
    versions = {name: installed_version(name) for name in ("torch", "accelerate", "transformers")}
    write_json(RESULTS, {"versions": versions, "seconds": seconds, "against_one_process": rows})
    assert all(is_the_same(row) and row["repeated_bitwise"] for row in rows.values()), rows
