"""Records of the three kinds of folder: a hash that is right does not make values right."""

from pathlib import Path
from typing import Any

import pytest

from slamkern.errors import SlamkernError
from slamkern.files import write_checked
from slamkern.run_folder import read_record

SCORES = {
    "task": "mgsm", "prompt": "chat", "rule": "r", "n": {"de": 2}, "accuracy": {"de": 50.0}, "strict": {"de": 50.0},
    "intervals": {"de": [9.5, 90.5]}, "average": 50.0, "average_interval": [9.5, 90.5], "strict_average": 50.0,
}  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "pipeline": {"settings": {"probe": {}}, "seconds": {"probe": 1.5}, "base_weights": "a" * 64},
    "training": {
        "settings": {"config": {}, "model": "llama-2-8-16", "frozen_weights": "b" * 64, "trained": ["w"],
                     "training_data": "c" * 64, "held_out_data": None},
        "base_model": "", "examples": 12, "steps": 6,
    },
    "evaluation": {"settings": {"task": "mgsm", "max_new_tokens": 8, "stop": []}, "model": "m", "result": SCORES,
                   "predictions_sha256": "e" * 64},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("pipeline", {"seconds": {"probe": -1.0}}, "seconds.probe: "),
        ("pipeline", {"base_weights": "a"}, "base_weights: "),
        ("training", {"steps": 0}, "steps: "),
        ("training", {"examples": True}, "examples: "),
        ("training", {"settings": GOOD["training"]["settings"] | {"trained": []}}, "settings.trained: "),
        ("training", {"settings": GOOD["training"]["settings"] | {"trained": ["w", "w"]}}, "settings.trained: a value"),
        ("training", {"settings": {}}, "settings.config: Field required"),
        ("evaluation", {"settings": {}}, "settings.task: Field required"),
        ("evaluation", {"result": SCORES | {"accuracy": {"de": 101.0}}}, "result.accuracy.de: "),
        ("evaluation", {"result": SCORES | {"n": {"th": 2}}}, "result: n and accuracy are of different languages"),
        ("evaluation", {"result": SCORES | {"average_interval": [3, 2]}}, "result: an interval ends before it begins"),
        ("evaluation", {"result": None}, "a result without the hash of its predictions"),
    ],
)
def test_records_that_none_of_ours_can_be(tmp_path: Path, kind: str, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "run.json"
    write_checked(path, {"kind": kind} | GOOD[kind])
    assert read_record(path, kind)[0] == GOOD[kind]["settings"]
    write_checked(path, {"kind": kind} | GOOD[kind] | change)
    with pytest.raises(SlamkernError) as caught:
        read_record(path, kind)
    assert str(caught.value).startswith(f"{path} is no record of a slamkern {kind} run: {words}")
