"""No two programs of a kernel race, their order changes no bit, and they read nothing that nobody wrote."""

import importlib.util
import inspect

import pytest
import torch
from support.kernel_checks import DEVICE, language_ids, normal
from support.poison import poisoned_memory

pytest.importorskip("triton")
if DEVICE != "cpu":
    pytest.skip("watches Triton's interpreter", allow_module_level=True)
import triton
import triton.language as tl
from support.interpreter_races import shuffled_programs, watched_programs

from slamkern import kernels
from slamkern.kernels import glu_stats, launch

GATE, UP, GRAD = (normal(150, 300, seed=seed) for seed in range(3))
NARROW, WEIGHT = GATE[:16], UP[0]


def statistics(layout, swiglu_stats=kernels.swiglu_stats):
    # Two strips of 256 columns; a language of two parts of 64 rows, which wait for one another, one of one, one absent.
    ids = language_ids(layout, 150, 2)
    ids[ids == 2] = 0
    assert kernels.plan_rows(ids, 3, 300).parts[:, 5].max() == 2
    return lambda: swiglu_stats(GATE, UP, ids, 3, "silu", "gate", launch.zero_moments(3, 300, GATE.device))


LAUNCHES = {
    "swiglu": lambda: (kernels.swiglu(GATE, UP, "silu"),),
    "swiglu_backward": lambda: kernels.swiglu_backward(GRAD, GATE, UP, "silu", True),
    "swiglu_stats grouped": statistics("grouped"),
    "swiglu_stats mixed": statistics("mixed"),
    "rms_norm": lambda: kernels.rms_norm(NARROW, WEIGHT, 1e-6, "llama"),
    "rms_norm_backward": lambda: (kernels.rms_norm_backward(GRAD[:16], NARROW, WEIGHT, NARROW[:, 0].abs(), "llama"),),
    "quantize_rows": lambda: kernels.quantize_rows(NARROW, WEIGHT.abs()),
}
NO_KERNELS = {"plan_rows", "unavailable_reason"}


def bits(results):
    return [result.view(torch.uint8) for result in results]


def test_every_kernel_is_watched():
    launchers = {name for name in kernels.__all__ if name.islower()} - NO_KERNELS
    assert {name.split()[0] for name in LAUNCHES} == launchers


@pytest.mark.parametrize("name", LAUNCHES)
def test_no_race_no_order_no_memory_of_others(name):
    with watched_programs() as watch:
        expected = bits(LAUNCHES[name]())
    assert watch.launches == 1 and watch.races() == {}
    with shuffled_programs(seed=1), poisoned_memory():
        actual = bits(LAUNCHES[name]())
    assert all(map(torch.equal, actual, expected))


@triton.jit
def racing_kernel(out_ptr):
    # Planted: every program stores its number to the first place, and adds to the second without an atomic.
    program = tl.program_id(0)
    tl.store(out_ptr, program.to(tl.float32))
    tl.store(out_ptr + 1, tl.load(out_ptr + 1) * 0.5 + program.to(tl.float32))


@triton.jit
def neighbor_kernel(out_ptr):
    # Planted: every program stores to a place of its own, and reads that of the program before it.
    program = tl.program_id(0)
    before = tl.load(out_ptr + program)
    tl.store(out_ptr + program + 1, before + 1.0)


@triton.jit
def handing_on_kernel(out_ptr, arrived_ptr, RELEASE: tl.constexpr, BARRIER: tl.constexpr):
    # The program that arrives last sums what the others stored; right with acq_rel and a barrier.
    program = tl.program_id(0)
    tl.store(out_ptr + program, program.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(arrived_ptr, 1, sem=RELEASE) == tl.num_programs(0) - 1:
        total = 0.0
        for i in range(tl.num_programs(0)):
            total += tl.load(out_ptr + i)
        tl.store(out_ptr, total)


@triton.jit
def forgetful_kernel(out_ptr, size):
    # Planted: the last place is nobody's.
    at = tl.program_id(0) * 4 + tl.arange(0, 4)
    tl.store(out_ptr + at, at.to(tl.float32), at < size - 1)


def launched(kernel, *arguments, programs=4, **constants):
    out = torch.zeros(8)
    kernel[(programs,)](out, *arguments, **constants)
    return out


@pytest.mark.parametrize(
    ("kernel", "races"),
    [(racing_kernel, {"store/store": 2, "load/store": 1}), (neighbor_kernel, {"load/store": 3})],
)
def test_planted_races_are_found(kernel, races):
    with watched_programs() as watch:
        expected = launched(kernel)
    assert watch.races() == races
    with shuffled_programs(0):
        assert not torch.equal(launched(kernel), expected)


@pytest.mark.parametrize("barrier", [True, False])
@pytest.mark.parametrize("release", ["acq_rel", "relaxed", "acquire"])
def test_an_order_by_an_atomic_counts_only_where_it_releases_and_a_barrier_is_before_it(release, barrier):
    with watched_programs() as watch:
        launched(handing_on_kernel, torch.zeros(1, dtype=torch.int32), RELEASE=release, BARRIER=barrier)
    assert bool(watch.races()) == (release != "acq_rel" or not barrier)


FAULTS = {
    "arrives without releasing": ('sem="acq_rel") == parts - 1', 'sem="relaxed") == parts - 1'),
    "arrives before its threads have stored": ("tl.debug_barrier()  # stores of every thread", "pass  # stores"),
    "changes the count while others read it": (
        "if tl.atomic_add(arrived_ptr + lanes - 1, 1, sem=\"acq_rel\") == strips - 1:", "if strip == 0:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_planted_in_the_statistics_are_found(fault, tmp_path):
    right, wrong = FAULTS[fault]
    source = inspect.getsource(glu_stats)
    assert source.count(right) == 1
    path = tmp_path / "faulty_stats.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("faulty_stats", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with watched_programs() as watch:
        statistics("mixed", module.swiglu_stats)()
    assert watch.races(), fault


def test_memory_that_nobody_wrote_is_poisoned():
    def launch():
        out = torch.empty_like(torch.zeros(8))
        forgetful_kernel[(2,)](out, 8)
        return out

    with poisoned_memory():
        assert launch().isnan().tolist() == [False] * 7 + [True]
        assert torch.empty(3, dtype=torch.float8_e4m3fn).float().isnan().all()
        assert torch.zeros(3).new_empty(2, dtype=torch.int32).tolist() == [2**30] * 2
