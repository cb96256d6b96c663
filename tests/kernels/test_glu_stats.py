"""Triton's swiglu with per-language statistics against float64: every layout of languages, bit for bit repeatable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_checks import DEVICE, DTYPES, assert_as_good, assert_moments, halves, language_ids, normal
from support.poison import poisoned_memory
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from slamkern import kernels
from slamkern.errors import SlamkernError
from slamkern.kernels import glu_stats, launch
from slamkern.modules.cuda_graphs import NoSync
from slamkern.ops import reference


def check(gate, up, ids, languages, activation="silu", observe="gate", tolerance=1e-6):
    wide = gate.double(), None if up is None else up.double()
    hidden, *stats = kernels.swiglu_stats(gate, up, ids, languages, activation, observe)
    truth, *expected = reference.swiglu_stats(*wide, ids, languages, activation, observe)
    assert_as_good(hidden, reference.swiglu(gate, up, activation), truth)
    assert_moments(stats, expected, tolerance)


@pytest.mark.parametrize("observe", ["gate", "hidden"])
@pytest.mark.parametrize("layout", ["grouped", "mixed", "ignored"])
def test_layouts(layout, observe):
    # 150 rows: languages of one part and of two, and tiles that are not full; 40 columns: a strip that is not full
    gate, up = normal(150, 40), normal(150, 40, seed=1)
    check(gate, up, language_ids(layout, 150, 3), 3, observe=observe)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "relu2"])
def test_activations_and_dtypes(dtype, activation):
    gate, up = halves(normal(9, 530, dtype=dtype), normal(9, 530, dtype=dtype, seed=1))
    ids = language_ids("mixed", 9, 2)
    check(gate, up, ids, 2, activation, "hidden")
    check(gate, None, ids, 2, activation, "hidden")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 70),
    neurons=st.integers(1, 300),
    languages=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["grouped", "mixed", "ignored"]),
    strided=st.booleans(),
)
def test_any_shape(tokens, neurons, languages, dtype, layout, strided):
    gate, up = normal(tokens, neurons, dtype=dtype), normal(tokens, neurons, dtype=dtype, seed=1)
    if strided:
        gate, up = halves(gate, up)
    check(gate, up, language_ids(layout, tokens, languages), languages)


def test_no_cancellation_where_the_mean_is_large():
    gate = normal(200, 16, scale=0.1) + 100
    *_, m2, _ = kernels.swiglu_stats(gate, None, language_ids("grouped", 200, 1), 1, "relu", "gate")
    *_, exact, _ = reference.swiglu_stats(gate.double(), None, language_ids("grouped", 200, 1), 1, "relu", "gate")
    assert ((m2 - exact).abs() / exact).max() < 1e-5


def test_ignored_rows_may_hold_anything_and_still_get_hidden():
    gate, ids = normal(16, 32), language_ids("mixed", 16, 2)
    gate[ids == -1] = float("nan")
    hidden, *stats = kernels.swiglu_stats(gate, gate, ids, 2, "silu", "hidden")
    assert hidden[ids == -1].isnan().all() and not hidden[ids >= 0].isnan().any()
    assert_moments(stats, reference.swiglu_stats(gate.double(), gate.double(), ids, 2, "silu", "hidden")[1:])


def test_bitwise_repeatable_and_nothing_left_unwritten():
    gate, up, ids = normal(70, 40), normal(70, 40, seed=1), language_ids("mixed", 70, 3)
    first = kernels.swiglu_stats(gate, up, ids, 4, "silu", "gate")
    with poisoned_memory():
        again = kernels.swiglu_stats(gate, up, ids, 4, "silu", "gate")
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("layout", ["grouped", "mixed"])
def test_batches_merge_into_the_moments_of_earlier_ones(layout):
    gate, up = normal(300, 40, seed=3), normal(300, 40, seed=4)
    ids = language_ids(layout, 300, 3)
    into = launch.zero_moments(3, 40, gate.device)
    for rows in (slice(0, 200), slice(200, 201), slice(201, 300)):
        plan = kernels.plan_rows(ids[rows], 3, 40)
        for _ in range(2):  # two layers with one plan: what a launch leaves behind in it disturbs no other
            other = launch.zero_moments(3, 40, gate.device)
            kernels.swiglu_stats(gate[rows], up[rows], ids[rows], 3, "silu", "gate", other, plan)
        returned = kernels.swiglu_stats(gate[rows], up[rows], ids[rows], 3, "silu", "gate", into, plan)[1:]
        assert all(a is b for a, b in zip(returned, into, strict=True))
        assert_moments(other, kernels.swiglu_stats(gate[rows], up[rows], ids[rows], 3, "silu", "gate")[1:])
        assert not plan.arrived.any()
    assert_moments(into, reference.swiglu_stats(gate.double(), up.double(), ids, 3, "silu", "gate")[1:])


def test_an_outlier_among_the_first_rows_does_not_spoil_the_variance():
    gate = normal(600, 16, scale=0.1) + 1
    for row in (0, 1, 3, 40):
        gate[row] += 1000
    ids = torch.zeros(600, dtype=torch.int32, device=DEVICE)
    *_, m2, _ = kernels.swiglu_stats(gate, None, ids, 1, "relu", "gate")
    exact = reference.swiglu_stats(gate.double(), None, ids, 1, "relu", "gate")[3]
    assert ((m2 - exact).abs() / exact).max() < 1e-5


@pytest.mark.parametrize("languages", [1, 10, 80, 256])
def test_a_plan_covers_every_token_once_and_its_memory_does_not_grow_with_languages(languages):
    tokens, neurons = 3000, 1024
    ids = language_ids("mixed", tokens, languages)
    plan = kernels.plan_rows(ids, languages, neurons)
    first, rows, language, slot, before, parts = (column.tolist() for column in plan.parts.cpu().T)
    assert plan.order.sort().values.tolist() == list(range(tokens))
    assert sum(rows) == tokens and max(rows) <= launch.part_rows(tokens, neurons, launch.processors(ids.device))
    seen = torch.where((ids >= 0) & (ids < languages), ids, languages)[plan.order.long()].cpu()
    taken = set()
    for part in range(len(rows)):
        assert (seen[first[part] : first[part] + rows[part]] == language[part]).all()
        if parts[part] > 1 and language[part] < languages:
            taken.add(slot[part] + before[part])
    alone = kernels.plan_rows(torch.zeros_like(ids), 1, neurons)
    assert plan.partials.shape == alone.partials.shape
    assert not taken or max(taken) < plan.partials.shape[0]
    assert len(taken) == sum(n > 1 and i < languages for n, i in zip(parts, language, strict=True))


class NoScalarFromTheHost(NoSync):
    """Refuses ``x[i] = 0`` too: on CUDA torch copies the number from the CPU to a view of one element, and waits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten.copy_.default or args[0].dim(), "a number is copied to the device"
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_a_plan_of_ids_on_a_device_does_not_wait_for_it():
    ids = torch.empty(300, dtype=torch.int32, device="meta")
    with NoScalarFromTheHost():
        assert kernels.plan_rows(ids, 3, 40).order.is_meta
    with NoScalarFromTheHost(), pytest.raises(AssertionError, match="a number is copied"):
        ids[3] = 0


class Made(TorchDispatchMode):
    """The ops that ran on tensors, and the bytes of what they made."""

    def __init__(self):
        super().__init__()
        self.ops, self.bytes = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.detach.default:
            self.ops.append(str(func))
            made = out if isinstance(out, tuple) else (out,)
            self.bytes += sum(x.nbytes for x in made if isinstance(x, torch.Tensor))
        return out


@pytest.mark.parametrize("languages", [1, 10 * 8, 32 * 8])
def test_beside_one_launch_a_layer_allocates_hidden_alone(languages, monkeypatch):
    launched = []
    stub = type("Stub", (), {"__getitem__": lambda self, grid: lambda *a, **k: launched.append(grid)})()
    monkeypatch.setattr(glu_stats, "swiglu_stats_kernel", stub)
    gate, ids = normal(3000, 1024), language_ids("mixed", 3000, languages)
    into, plan = launch.zero_moments(languages, 1024, gate.device), kernels.plan_rows(ids, languages, 1024)
    with Made() as made:
        kernels.swiglu_stats(gate, gate, ids, languages, "silu", "gate", into, plan)
    assert made.ops == ["aten.empty_like.default"] and made.bytes == gate.nbytes and len(launched) == 1
    with Made() as made:  # as a layer would that made moments and a plan of its own
        kernels.swiglu_stats(gate, gate, ids, languages, "silu", "gate")
    assert len(made.ops) > 20 and made.bytes > gate.nbytes + 24 * languages * 1024


@pytest.mark.parametrize(("tokens", "neurons"), [(1, 64), (4096, 1536), (4096, 11008), (32768, 11008), (10**6, 14336)])
def test_parts_fill_one_wave_unless_they_would_be_too_long_or_too_short(tokens, neurons):
    rows = launch.part_rows(tokens, neurons, 132)
    strips = launch.ceil_div(neurons, 512)
    assert rows % launch.STATS_ROWS == 0 and 64 <= rows <= 512
    assert rows == 512 or launch.ceil_div(tokens, rows) * strips <= max(6 * 132, strips)


def test_what_is_refused():
    gate = normal(4, 8)
    with pytest.raises(SlamkernError, match="int64"):
        kernels.swiglu_stats(gate, gate, torch.zeros(4, dtype=torch.int64), 1, "silu", "gate")
    with pytest.raises(SlamkernError, match="unknown observable 'up'"):
        kernels.swiglu_stats(gate, gate, language_ids("mixed", 4, 1), 1, "silu", "up")
