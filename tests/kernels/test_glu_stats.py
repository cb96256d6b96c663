"""Triton's swiglu with per-language statistics against float64: every layout of languages, bit for bit repeatable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_checks import DEVICE, DTYPES, assert_as_good, assert_moments, halves, language_ids, normal

pytest.importorskip("triton")
from slamkern import kernels
from slamkern.errors import SlamkernError
from slamkern.kernels import launch, merge_moments
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
    # 150 rows: two chunks of 64 and more, and a last tile that is not full; 40 columns: a strip that is not full
    gate, up = normal(150, 40), normal(150, 40, seed=1)
    check(gate, up, language_ids(layout, 150, 3), 3, observe=observe)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
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


def test_bitwise_repeatable_and_nothing_left_unwritten(monkeypatch):
    gate, up, ids = normal(70, 40), normal(70, 40, seed=1), language_ids("mixed", 70, 3)
    first = kernels.swiglu_stats(gate, up, ids, 4, "silu", "gate")

    def poisoned(shape, *, dtype, device):
        return torch.full(shape, float("nan") if dtype.is_floating_point else 2**30, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", poisoned)
    for before, after in zip(first, kernels.swiglu_stats(gate, up, ids, 4, "silu", "gate"), strict=True):
        assert torch.equal(before, after)


def test_rounds_merge_like_one():
    rows = normal(12, 8, seed=3).double()
    counts = torch.tensor([[3, 0], [4, 2], [0, 3]], dtype=torch.int32)
    partials = merge_moments.empty_partials(3, 2, 8, torch.device(DEVICE))
    partials[0].copy_(counts)
    truth = []
    start = 0
    for part in range(3):
        for language in range(2):
            some = rows[start : start + counts[part, language]]
            start += len(some)
            if len(some):
                partials[1][part, language] = some.mean(0).float()
                partials[2][part, language] = (some - some.mean(0)).square().sum(0).float()
                partials[3][part, language] = (some > 0).sum(0)
                truth.append((language, some))
    merger = merge_moments.Merger(2, 8, torch.device(DEVICE))
    merger.add(partials, 1)
    merger.add(tuple(x[1:] for x in partials), 2)
    languages = [torch.cat([some for which, some in truth if which == language]) for language in range(2)]
    expected = (
        torch.tensor([len(x) for x in languages], device=DEVICE),
        torch.stack([x.mean(0) for x in languages]),
        torch.stack([(x - x.mean(0)).square().sum(0) for x in languages]),
        torch.stack([(x > 0).sum(0) for x in languages]),
    )
    assert_moments(merger.moments(), expected)


@pytest.mark.parametrize(("tokens", "neurons"), [(1, 64), (4096, 1536), (4096, 11008), (32768, 11008), (10**6, 14336)])
def test_chunks_cover_all_rows_in_one_wave(tokens, neurons):
    strips = launch.ceil_div(neurons, 512)
    chunks = launch.chunks(tokens, strips, 4, 132)
    assert chunks.rows * (chunks.count - 1) < tokens <= chunks.rows * chunks.count
    assert chunks.rows % 4 == 0
    assert chunks.count * strips <= max(6 * 132, strips)


def test_what_is_refused():
    gate = normal(4, 8)
    with pytest.raises(SlamkernError, match="int64"):
        kernels.swiglu_stats(gate, gate, torch.zeros(4, dtype=torch.int64), 1, "silu", "gate")
    with pytest.raises(SlamkernError, match="unknown observable 'up'"):
        kernels.swiglu_stats(gate, gate, language_ids("mixed", 4, 1), 1, "silu", "up")
