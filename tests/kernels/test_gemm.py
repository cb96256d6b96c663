"""Triton's GEMMs: the gated projections with statistics in the epilogue, and weight gradients of selected neurons."""

import pytest
import torch
from support.kernel_checks import DEVICE, DTYPES, assert_as_good, assert_moments, language_ids, normal

pytest.importorskip("triton")
from slamkern import kernels
from slamkern.errors import SlamkernError
from slamkern.kernels import dual_gemm, launch
from slamkern.ops import reference

HALF = torch.bfloat16


def project(x, w_gate, w_up, activation):
    """hidden, gate, up in the dtype of x: each product rounded as a stock implementation rounds it."""
    gate, up = x @ w_gate.T, x @ w_up.T
    return reference.swiglu(gate, up, activation), gate, up


def check(tokens, width, neurons, dtype, activation, observe, save, layout, languages=3, tolerance=1e-6):
    # Projections of unit variance: far below zero a float32 GELU is 0 where the exact one is not, and counts differ.
    x = normal(tokens, width, dtype=dtype)
    w_gate, w_up = (normal(neurons, width, dtype=dtype, seed=seed, scale=width**-0.5) for seed in (1, 2))
    ids = None if layout is None else language_ids(layout, tokens, languages)
    *results, stats = kernels.gated_linear(x, w_gate, w_up, ids, languages, activation, observe, save)
    stock = project(x, w_gate, w_up, activation)
    truth = project(x.double(), w_gate.double(), w_up.double(), activation)
    if not save:
        truth = truth[0], None, None
    for name, result, plain, exact in zip(("hidden", "gate", "up"), results, stock, truth, strict=True):
        assert_as_good(result, plain, exact, name)
    if ids is None:
        assert stats is None
        return
    exact = reference.swiglu_moments(
        x.double() @ w_gate.double().T, x.double() @ w_up.double().T, ids, languages, activation, observe
    )
    # The sign of a product near zero is a matter of rounding: the active counts may differ where it is.
    assert (stats[3] - exact[3]).abs().max() <= 1
    assert_moments((*stats[:3], exact[3]), exact, tolerance)


# (tokens, width, neurons): through tensor maps with ragged tiles; through pointers since 33 columns are not 16 bytes
@pytest.mark.parametrize("shape", [(150, 72, 136), (70, 33, 50)])
@pytest.mark.parametrize("layout", ["grouped", "mixed", None])
def test_gated_linear(shape, layout):
    check(*shape, HALF, "silu", "gate", save=False, layout=layout)
    check(*shape, HALF, "gelu_tanh", "hidden", save=True, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_gated_linear_dtypes_and_activations(dtype, activation):
    check(40, 32, 48, dtype, activation, "hidden", save=True, layout="mixed")
    check(1, 32, 48, dtype, activation, "gate", save=False, layout="grouped")


def test_the_pointer_kernel_of_older_gpus(monkeypatch):
    monkeypatch.setattr(launch, "capability", lambda device: (8, 0))
    check(150, 72, 136, HALF, "silu", "gate", save=False, layout="mixed")


def test_rows_whose_partials_do_not_fit_go_through_several_launches(monkeypatch):
    monkeypatch.setattr(dual_gemm, "_PARTIAL_BYTES", 2 * 12 * 3 * 48)  # two row tiles of 48 neurons, 3 languages
    check(150, 32, 48, torch.float32, "silu", "gate", save=False, layout="mixed")


def test_gated_linear_without_tokens():
    x, weight = normal(0, 16), normal(8, 16)
    ids = language_ids("mixed", 0, 2)
    hidden, gate, up, stats = kernels.gated_linear(x, weight, weight, ids, 2, "silu", "gate", True)
    assert hidden.shape == gate.shape == up.shape == (0, 8)
    assert all((x == 0).all() for x in stats)


def test_gated_linear_is_bitwise_repeatable():
    x, w_gate, w_up = (normal(n, 64, dtype=HALF, seed=seed) for seed, n in enumerate((150, 130, 130)))
    ids = language_ids("mixed", 150, 3)
    runs = [kernels.gated_linear(x, w_gate, w_up, ids, 3, "silu", "gate", False) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(first, again) for first, again in zip(runs[0][3], runs[1][3], strict=True))


def test_gated_linear_refuses_weights_of_another_width():
    with pytest.raises(SlamkernError, match="expected \\(neurons, 16\\)"):
        kernels.gated_linear(normal(2, 16), normal(4, 8), normal(4, 8), None, 1, "silu", "gate", False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", ["all", "rows", "cols", "both"])
def test_weight_grad(dtype, chosen):
    for tokens, outputs, inputs in ((70, 130, 48), (1, 5, 7)):
        grad, x = normal(tokens, outputs, dtype=dtype), normal(tokens, inputs, dtype=dtype, seed=1)
        rows = torch.tensor([3, 0, outputs - 1], device=DEVICE) if chosen in ("rows", "both") else None
        cols = torch.tensor([inputs - 1, 2], device=DEVICE) if chosen in ("cols", "both") else None

        def pick(full, rows=rows, cols=cols):
            full = full if rows is None else full[rows]
            return full if cols is None else full[:, cols]

        actual = kernels.sparse_weight_grad(grad, x, rows, cols)
        assert_as_good(actual, pick(grad.T @ x), pick(grad.double().T @ x.double()))


def test_weight_grad_splits_the_tokens(monkeypatch):
    monkeypatch.setattr(launch, "token_splits", lambda *_: 3)
    grad, x = normal(100, 9, dtype=HALF), normal(100, 8, dtype=HALF, seed=1)
    wide = torch.cat((x, x), 1)[:, :8]
    assert_as_good(kernels.sparse_weight_grad(grad, wide), grad.T @ x, grad.double().T @ x.double())


def test_weight_grad_of_nothing_is_zero():
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert torch.equal(kernels.sparse_weight_grad(normal(0, 4), normal(0, 3)), torch.zeros(4, 3, device=DEVICE))
    assert kernels.sparse_weight_grad(normal(5, 4), normal(5, 3), none).shape == (0, 3)


def test_few_output_tiles_are_split_only_as_far_as_one_wave_goes():
    assert launch.token_splits(tiles=2752, tokens=8192, processors=132) == 1
    assert launch.token_splits(tiles=32, tokens=8192, processors=132) == 4
    assert launch.token_splits(tiles=1, tokens=500, processors=132) == 1
