"""No two programs of a kernel store to one place, and their order changes no bit."""

import pytest
import torch
from support.kernel_checks import DEVICE, language_ids, normal

pytest.importorskip("triton")
if DEVICE != "cpu":
    pytest.skip("watches Triton's interpreter", allow_module_level=True)
import triton
import triton.language as tl
from support.interpreter_races import shuffled_programs, watched_stores

from slamkern import kernels

GATE, UP, GRAD = (normal(150, 300, seed=seed) for seed in range(3))


def statistics(layout):
    # Strips of 256 columns, languages of several parts of 64 rows and of one: parts wait for one another.
    ids = language_ids(layout, 150, 2)
    return lambda: kernels.swiglu_stats(GATE, UP, ids, 3, "silu", "gate")


LAUNCHES = {
    "swiglu": lambda: (kernels.swiglu(GATE, UP, "silu"),),
    "swiglu_backward": lambda: kernels.swiglu_backward(GRAD, GATE, UP, "silu", True),
    "swiglu_stats grouped": statistics("grouped"),
    "swiglu_stats mixed": statistics("mixed"),
    "rms_norm": lambda: kernels.rms_norm(GATE[:16], UP[0], 1e-6, "llama"),
    "quantize_rows": lambda: kernels.quantize_rows(GATE[:16], None),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_place_is_stored_to_by_one_program_and_the_order_changes_nothing(name):
    with watched_stores() as stores:
        expected = LAUNCHES[name]()
    assert stores.shared() == 0
    with shuffled_programs(seed=1):
        actual = LAUNCHES[name]()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@triton.jit
def racing_kernel(out_ptr):
    # Planted: every program stores its number to the first place, and adds to the second without an atomic.
    program = tl.program_id(0)
    at = tl.arange(0, 1)
    tl.store(out_ptr + at, program.to(tl.float32) + tl.zeros((1,), tl.float32), at < 1)
    total = tl.load(out_ptr + 1 + at, at < 1, other=0.0)
    tl.store(out_ptr + 1 + at, total * 0.5 + program.to(tl.float32), at < 1)


def test_the_check_finds_a_planted_race():
    def launch():
        out = torch.zeros(2)
        racing_kernel[(4,)](out)
        return out

    with watched_stores() as stores:
        expected = launch()
    assert stores.shared() == 2
    with shuffled_programs(0):
        assert not torch.equal(launch(), expected)
