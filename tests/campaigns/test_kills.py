"""kill -9 at random moments of a whole run: resumed, it ends bit by bit where the unbroken one ends.

``SLAMKERN_TRIALS=200 pytest -m campaign tests/campaigns/test_kills.py``; the counts go to ``results/kills.json``. With
``SLAMKERN_CAMPAIGN=FOLDER`` the trials are noted there, and the same command goes on where it was interrupted.
"""

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from campaigns.kills import STAGES, Child, kill_in, lost, run_to_kill, seconds_of, trial

from slamkern.files import load_tensors, save_tensors, write_json

TRIALS = int(os.environ.get("SLAMKERN_TRIALS", "30"))


@pytest.mark.campaign
def test_killed_runs_resume_bit_by_bit(tmp_path: Path) -> None:
    place = Path(os.environ.get("SLAMKERN_CAMPAIGN", tmp_path)) / "kills"
    place.mkdir(parents=True, exist_ok=True)
    config = run_to_kill(place)
    for name in ("warm", "whole"):
        shutil.rmtree(place / name, ignore_errors=True)
        child = Child(config, place / name)
        assert child.finish() == 0
        durations = seconds_of(child, time.monotonic())
    noted = place / "trials.jsonl"
    done = [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []
    for number in range(len(done), TRIALS):
        out = place / str(number)
        shutil.rmtree(out, ignore_errors=True)
        done.append(trial(number, config, out, durations, place / "whole"))
        with noted.open("a") as lines:
            lines.write(json.dumps(done[-1]) + "\n")
        if done[-1]["outcome"] == "equal":
            shutil.rmtree(out)
    stages = Counter(entry["killed"][0] for entry in done)
    again = Counter(stage for entry in done for stage in entry["killed"][1:])
    outcomes = Counter(entry["outcome"] for entry in done)
    result = {
        "trials": len(done),
        "killed": sum(stages[stage] + again[stage] for stage in STAGES),
        "killed_in": {stage: stages[stage] for stage in STAGES},
        "killed_again_while_resuming_in": {stage: again[stage] for stage in STAGES},
        "done_before_the_kill": stages[None] + again[None],
        "outcomes": dict(outcomes),
        "seconds_of_a_stage": {stage: round(value, 3) for stage, value in durations.items()},
    }
    write_json(Path(__file__).parent / "results" / "kills.json", result)
    assert outcomes["equal"] == len(done), result


def test_a_run_killed_three_times_ends_like_the_unbroken_one(tmp_path: Path) -> None:
    config = run_to_kill(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert Child(config, whole).finish() == 0
    killed = [kill_in(config, out, stage, 0.02) for stage in ("before", "train", "report")]
    assert None not in killed
    assert Child(config, out).finish() == 0
    assert lost(out, whole) == "equal"

    # The comparison sees one bit of one value, a step that is logged otherwise, and a file that is left over.
    path = out / "train" / "delta.safetensors"
    kept = path.read_bytes()
    tensors, metadata = load_tensors(path, "delta")
    next(iter(tensors.values())).view(-1)[0] += 1e-6
    save_tensors(path, tensors, {name: value for name, value in metadata.items() if name != "sha256"})
    assert lost(out, whole) == "train/delta.safetensors"
    path.write_bytes(kept)
    log = out / "train" / "metrics.jsonl"
    rows = log.read_text()
    log.write_text(rows.replace('"step": 3, "loss": ', '"step": 3, "loss": 1'))
    assert lost(out, whole) == "train/metrics.jsonl"
    log.write_text(rows)
    (out / "figures" / ".loss.png.tmp").touch()
    assert lost(out, whole) == "figures/.loss.png.tmp"
