"""The compiled op on a CPU against float64: every instruction set, dtype, activation and observable."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.ops import ACTIVATIONS, OBSERVABLES, native, reference

MISSING = {device: native.unavailable_reason(device) for device in ("cpu", "cuda")}
pytestmark = pytest.mark.skipif(MISSING["cpu"] is not None, reason=str(MISSING["cpu"]))

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIBRARY = Path(native.__file__).parents[1] / "_native.so"


@pytest.fixture(params=["best", "avx2", "baseline"])
def isa(request, tmp_path, monkeypatch) -> str:
    """The binding on a fresh copy of the library that chose another instruction set when it was loaded."""
    if request.param == "best":
        return native.instruction_set()
    monkeypatch.setenv("SLAMKERN_ISA", request.param)
    library = native.load(Path(shutil.copy(LIBRARY, tmp_path / "_native.so")))
    if library.slamkern_isa().decode() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(native, "_library", lambda device_type: library)
    return request.param


def matrices(count: int, tokens: int, neurons: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, neurons, generator=generator).to(dtype) for _ in range(count)]


def language_ids(tokens: int, seed: int = 0) -> Tensor:
    """Ids -1..4 of which language 2 never occurs."""
    ids = torch.randint(-1, 5, (tokens,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return torch.where(ids == 2, 4, ids)


def assert_as_accurate(actual: Tensor, eager: Tensor, truth: Tensor) -> None:
    """Error at most twice eager's largest plus one rounding of the result."""
    if truth.numel() == 0:
        assert actual.shape == truth.shape
        return
    rounding = torch.finfo(actual.dtype).eps * truth.abs()
    allowed = 2 * (eager.double() - truth).abs().max() + rounding
    assert bool(((actual.double() - truth).abs() <= allowed).all())


# One row, a ragged tile, several tiles; a ragged vector, an aligned one, more than a piece of a row (2048).
SHAPES = [(0, 8), (1, 5), (17, 64), (257, 333), (40, 2100)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_statistics_are_as_accurate_as_eager(isa, activation, dtype):
    for tokens, neurons in SHAPES:
        gate, up = torch.cat(matrices(2, tokens, neurons, dtype), 1).chunk(2, 1)  # halves of a fused projection
        ids = language_ids(tokens)
        for up_or_none in (up, None):
            wide_up = None if up_or_none is None else up.double()
            for observe in OBSERVABLES:
                arguments = (ids, 5, activation, observe)
                hidden, count, mean, m2, active = native.swiglu_stats(gate, up_or_none, *arguments)
                truth = reference.swiglu_stats(gate.double(), wide_up, *arguments)
                assert_as_accurate(hidden, reference.swiglu(gate, up_or_none, activation), truth[0])
                assert torch.equal(hidden, native.swiglu(gate, up_or_none, activation))
                assert torch.equal(count, truth[1])
                torch.testing.assert_close(mean, truth[2], rtol=2e-6, atol=5e-7)
                torch.testing.assert_close(m2, truth[3], rtol=1e-5, atol=1e-6)
                assert torch.equal(active, truth[4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_is_as_accurate_as_eager(isa, activation, dtype):
    for tokens, neurons in SHAPES:
        grad, gate, up = matrices(3, tokens, neurons, dtype)
        for up_or_none in (up, None):
            arguments = (grad, 3 * gate, up_or_none)
            actual = native.swiglu_backward(*arguments, activation, True)
            eager = reference.swiglu_backward(*arguments, activation, True)
            truth = reference.swiglu_backward(*(x if x is None else x.double() for x in arguments), activation, True)
            assert (actual[1] is None) == (up_or_none is None)
            for one, other, exact in zip(actual, eager, truth, strict=True):
                if one is not None:
                    assert_as_accurate(one, other, exact)
        _, grad_up, _ = native.swiglu_backward(grad, gate, up, activation, True)
        no_gate, same, no_hidden = native.swiglu_backward(grad, gate, up, activation, False, False)
        assert no_gate is None and no_hidden is None and torch.equal(same, grad_up)


def test_exp_is_within_two_ulp(isa):
    linear = torch.linspace(-87.3, 87.3, 2_000_001)
    tiny = torch.logspace(-30, 1.9, 500_001, dtype=torch.float64).float()
    x = torch.cat([linear, tiny, -tiny, torch.zeros(1)])
    out = torch.empty_like(x)
    function = native._library("cpu").slamkern_exp
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    function(x.data_ptr(), out.data_ptr(), x.numel())
    truth = x.double().exp()
    ulp = torch.nextafter(truth.float(), torch.tensor(torch.inf)).double() - truth.float().double()
    assert ((out.double() - truth).abs() / ulp).max() <= 2


def test_every_half_precision_number_converts_exactly(isa):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).reshape(256, 256)
    for dtype in (torch.bfloat16, torch.float16):
        x = patterns.view(dtype)
        torch.testing.assert_close(native.swiglu(x, None, "relu"), torch.relu(x), rtol=0, atol=0, equal_nan=True)
        y = matrices(1, 256, 256, dtype)[0]  # products are exact in float32, so this tests the rounding of every binade
        expected = (torch.relu(x.float()) * y.float()).to(dtype)
        torch.testing.assert_close(native.swiglu(x, y, "relu"), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_gates_behave_as_in_torch(isa, activation):
    extremes = [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e10, -1e10, 88.0, -88.0, 1e-40, -1e-40, -0.0]
    gate = torch.tensor([extremes]).repeat(1, 8)  # in vector lanes, and in a remainder
    ones = torch.ones_like(gate)
    # In float64: torch's float32 GELU of 3e38 is infinite.
    expected = reference.swiglu(gate.double(), None, activation).float()
    torch.testing.assert_close(native.swiglu(gate, None, activation), expected, equal_nan=True)
    finite = gate.clone().requires_grad_()
    reference.activate(finite, activation).backward(ones)
    actual = native.swiglu_backward(ones, gate, None, activation, False)[0]
    known = gate.abs() < 1e12  # beyond, some of torch's own derivatives are NaN for finite gates
    torch.testing.assert_close(actual[known], finite.grad[known])
    if activation != "relu":
        assert bool(actual[gate.isnan()].isnan().all())


def test_statistics_do_not_depend_on_threads_or_on_how_languages_are_mixed(isa):
    gate, up = matrices(2, 1000, 2500, torch.float32)
    ids = language_ids(1000)
    grouped = torch.sort(ids, stable=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = native.swiglu_stats(gate, up, ids, 5, "silu", "hidden")
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert all(map(torch.equal, native.swiglu_stats(gate, up, ids, 5, "silu", "hidden"), expected))
    finally:
        torch.set_num_threads(threads)
    rows = grouped.indices
    _, *moments = native.swiglu_stats(gate[rows], up[rows], grouped.values, 5, "silu", "hidden")
    assert all(map(torch.equal, moments, expected[1:]))


def test_variance_survives_a_mean_a_thousand_times_larger(isa):
    gate = 100 + 0.1 * matrices(1, 4096, 64, torch.float32)[0]
    ids = torch.zeros(4096, dtype=torch.int32)
    _, _, mean, m2, _ = native.swiglu_stats(gate, None, ids, 1, "relu", "gate")
    truth = gate.double()
    torch.testing.assert_close(m2[0] / 4096, truth.var(0, correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean[0], truth.mean(0), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_written_past_the_caches_are_the_same(isa, dtype):
    """8 MiB and more are streamed where rows are aligned (2064 neurons) and stored as usual where not (2065)."""
    for neurons in (2064, 2065):
        grad, gate, up = matrices(3, 2100, neurons, dtype)
        hidden = native.swiglu(gate, up, "silu")
        grads = native.swiglu_backward(grad, gate, up, "silu", True)
        for rows in (slice(0, 100), slice(2000, 2100)):
            assert torch.equal(hidden[rows], native.swiglu(gate[rows], up[rows], "silu"))
            part = native.swiglu_backward(grad[rows], gate[rows], up[rows], "silu", True)
            assert all(torch.equal(whole[rows], piece) for whole, piece in zip(grads, part, strict=True))


def test_what_the_library_cannot_read_is_refused():
    gate, up = matrices(2, 6, 8, torch.float32)
    ids = torch.zeros(6, dtype=torch.int32)
    with pytest.raises(SlamkernError, match=r"not torch\.float64"):
        native.swiglu(gate.double(), None, "silu")
    with pytest.raises(SlamkernError, match="6 elements apart"):
        native.swiglu(torch.randn(8, 6).T, up, "silu")
    with pytest.raises(SlamkernError, match=r"language_ids is \(6,\) torch.int64"):
        native.swiglu_stats(gate, up, ids.long(), 1, "silu", "gate")


def test_unavailable_reason_names_what_is_missing(tmp_path):
    assert "C++17 compiler" in native.load(tmp_path / "_native.so")
    assert "nvcc" in native.load(tmp_path / "_native_cuda.so")
    (tmp_path / "broken.so").write_bytes(b"not a library")
    assert "cannot be loaded" in native.load(tmp_path / "broken.so")
    assert "'xpu'" in native.unavailable_reason("xpu")


@pytest.mark.cuda
@pytest.mark.skipif(MISSING["cuda"] is not None, reason=str(MISSING["cuda"]))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_cuda_library_gives_what_the_reference_gives(activation, dtype):
    for tokens, neurons in SHAPES:
        grad, gate, up = (x.cuda() for x in matrices(3, tokens, neurons, dtype))
        ids = language_ids(tokens).cuda()
        for observe in OBSERVABLES:
            actual = native.swiglu_stats(gate, up, ids, 5, activation, observe)
            plan = native.plan_rows(ids, 5, neurons, ids.device)
            for again in (native.swiglu_stats(gate, up, ids, 5, activation, observe, plan=p) for p in ((), plan, plan)):
                assert all(map(torch.equal, actual, again))
            truth = reference.swiglu_stats(gate.double(), up.double(), ids, 5, activation, observe)
            assert_as_accurate(actual[0], reference.swiglu(gate, up, activation), truth[0])
            assert torch.equal(actual[1], truth[1])
            # Welford's float32 update rounds relative to the distance from a tile's first row: simulated, 1.5e-6 here.
            torch.testing.assert_close(actual[2], truth[2], rtol=2e-6, atol=3e-6)
            torch.testing.assert_close(actual[3], truth[3], rtol=1e-5, atol=1e-6)
            assert torch.equal(actual[4], truth[4])
        arguments = (grad, gate, up)
        eager = reference.swiglu_backward(*arguments, activation, True)
        exact = reference.swiglu_backward(*(x.double() for x in arguments), activation, True)
        for one, other, truth_of in zip(
            native.swiglu_backward(*arguments, activation, True), eager, exact, strict=True
        ):
            assert_as_accurate(one, other, truth_of)
