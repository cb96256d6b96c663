"""kill -9 at random moments of a whole run: resumed, it ends bit by bit where the unbroken one ends.

``SLAMKERN_TRIALS=30 pytest -m campaign tests/campaigns/test_kills.py``; the counts go to ``results/kills.json``.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.tiny_run import tiny_run

from slamkern.files import load_tensors
from slamkern.pipeline import run
from slamkern.pipeline.config import RunConfig
from slamkern.pipeline.verify import verify

pytestmark = pytest.mark.campaign
TRIALS = int(os.environ.get("SLAMKERN_TRIALS", "30"))


def start(config: RunConfig, out: Path) -> int:
    """The run in a process of its own, forked so that nothing is imported again."""
    if child := os.fork():
        return child
    status = 1
    try:
        run.run(config, out, progress=False)
        status = 0
    finally:
        os._exit(status)


def outcome(out: Path, expected: Path) -> str:
    """What a resumed run lost: nothing ("equal"), or the first file that differs."""
    for name in ("stats.safetensors", "train/delta.safetensors"):
        ours, theirs = (load_tensors(folder / name, "tensor")[0] for folder in (out, expected))
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return name
    for moment in ("before", "after"):
        name = f"evaluation/{moment}/predictions.jsonl"
        if sorted((out / name).read_text().splitlines()) != sorted((expected / name).read_text().splitlines()):
            return name
    if [path for path in out.iterdir() if path.name.startswith(".")]:
        return "left over"
    return "equal" if not verify(out)[1] else "verify"


def test_killed_runs_resume_bit_by_bit(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    assert os.waitpid(start(config, tmp_path / "warm"), 0)[1] == 0
    started = time.monotonic()
    assert os.waitpid(start(config, tmp_path / "whole"), 0)[1] == 0
    seconds = time.monotonic() - started
    random.seed(0)
    counts: Counter[str] = Counter()
    for trial in range(TRIALS):
        out = tmp_path / str(trial)
        for _ in range(2):  # killed twice, the second time while it resumes
            child = start(config, out)
            time.sleep(random.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            counts["killed"] += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        status = os.waitpid(start(config, out), 0)[1]
        counts[outcome(out, tmp_path / "whole") if status == 0 else "not resumed"] += 1
    result = {"trials": TRIALS, "seconds_of_a_run": round(seconds, 1), **counts}
    (Path(__file__).parent / "results" / "kills.json").write_text(json.dumps(result, indent=2) + "\n")
    assert counts["equal"] == TRIALS, result
