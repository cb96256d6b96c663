"""Ten thousand steps need no more memory than one thousand: ``pytest -m campaign tests/campaigns/test_soak.py``.

Resident memory every 100 steps goes to ``results/soak.json``. Two hundred steps are an ordinary test.
"""

import mmap
import os
from pathlib import Path

import pytest
from campaigns.soak import growth, soak

from slamkern.files import write_json

STEPS = int(os.environ.get("SLAMKERN_STEPS", "10000"))
LARGEST = 0.01


def test_two_hundred_steps_keep_nothing(tmp_path: Path) -> None:
    assert growth(soak(tmp_path, 200, 20), warm=100) < LARGEST


def test_a_leak_of_a_quarter_of_a_megabyte_a_step_is_found(tmp_path: Path) -> None:
    kept: list[mmap.mmap] = []  # pages of its own: the heap may have room left from tests before

    def leak() -> None:
        kept.append(mmap.mmap(-1, 2**18))
        kept[-1].write(bytes(2**18))

    samples = soak(tmp_path, 200, 20, leak)
    assert growth(samples, warm=100) > LARGEST


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_memory_is_flat(tmp_path: Path) -> None:
    samples = soak(tmp_path, STEPS, STEPS // 100)
    warm = STEPS // 10
    result = {
        "steps": STEPS,
        "warm_up_steps": warm,
        "growth_after_warm_up": round(growth(samples, warm), 5),
        "resident_bytes_by_step": dict(samples),
    }
    write_json(Path(__file__).parent / "results" / "soak.json", result)
    assert growth(samples, warm) < LARGEST, result
