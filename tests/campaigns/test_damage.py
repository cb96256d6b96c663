"""Bits flipped and files cut at random, in every file of a run: an error of one line, or nothing changed.

``SLAMKERN_TRIALS=300 pytest -m campaign tests/campaigns/test_damage.py`` (of each file); the counts go to
``results/damage.json``.
"""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from campaigns.damage import READERS, add_rare_files, damage, files_of

import slamkern.files
from slamkern.files import write_json

TRIALS = int(os.environ.get("SLAMKERN_TRIALS", "300"))


@pytest.fixture
def damaged_run(finished: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    add_rare_files(run)
    return run


def test_every_kind_of_file_of_a_run_is_refused_or_unaffected(damaged_run: Path) -> None:
    files = files_of(damaged_run)
    assert {path.name for path in files} == set(READERS)
    draw = random.Random(0)
    for path in files:
        counts, odd = damage(path, 12, draw)
        assert not counts["silent"] and not counts["traceback"], (path, odd)


def test_a_hash_that_nobody_compares_is_found(damaged_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Anything(str):
        __hash__ = str.__hash__

        def __ne__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(slamkern.files, "_json_digest", lambda values: Anything())
    counts, _ = damage(damaged_run / "metrics.json", 40, random.Random(0))
    assert counts["silent"]


@pytest.mark.campaign
def test_damage_is_an_error_or_nothing(damaged_run: Path) -> None:
    draw = random.Random(0)
    counts: dict[str, Counter[str]] = {}
    odd: list[str] = []
    for path in files_of(damaged_run):
        name = path.relative_to(damaged_run).as_posix()
        counts[name], found = damage(path, TRIALS, draw)
        odd += found
    total = sum(counts.values(), Counter())
    result = {
        "trials_a_file": TRIALS,
        "trials": total.total(),
        "total": {kind: total[kind] for kind in ("refused", "unaffected", "silent", "traceback")},
        "files": {name: dict(count) for name, count in counts.items()},
        "odd": odd[:20],
    }
    write_json(Path(__file__).parent / "results" / "damage.json", result)
    assert not total["silent"] and not total["traceback"], result
