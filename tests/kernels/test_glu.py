"""Triton's activation-and-product kernels, forward and backward, against float64."""

import pytest
import torch
from support.kernel_checks import DEVICE, DTYPES, assert_as_good, halves, normal
from support.poison import poisoned_memory

pytest.importorskip("triton")
from slamkern import kernels
from slamkern.errors import SlamkernError
from slamkern.ops import ACTIVATIONS, reference

# one aligned shape; one row; ragged in both directions and wider than a strip
SHAPES = [(8, 256), (1, 17), (6, 1030)]


def double(*tensors):
    return [None if x is None else x.double() for x in tensors]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(dtype, activation, gated):
    for tokens, neurons in SHAPES:
        gate, grad = normal(tokens, neurons, dtype=dtype, scale=3), normal(tokens, neurons, dtype=dtype, seed=1)
        up = normal(tokens, neurons, dtype=dtype, seed=2) if gated else None
        assert_as_good(
            kernels.swiglu(gate, up, activation),
            reference.swiglu(gate, up, activation),
            reference.swiglu(*double(gate, up), activation),
        )
        actual = kernels.swiglu_backward(grad, gate, up, activation, True)
        stock = reference.swiglu_backward(grad, gate, up, activation, True)
        truth = reference.swiglu_backward(*double(grad, gate, up), activation, True)
        for name, result, plain, exact in zip(("grad_gate", "grad_up", "hidden"), actual, stock, truth, strict=True):
            assert_as_good(result, plain, exact, name)
        fewer = kernels.swiglu_backward(grad, gate, up, activation, False, False)
        assert fewer[0] is None and fewer[2] is None
        assert fewer[1] is None if up is None else torch.equal(fewer[1], actual[1])


def test_rows_may_be_strided_and_gradients_expanded():
    gate, up = halves(normal(5, 300, seed=1), normal(5, 300, seed=2))
    grad = normal(1, 300, seed=3).expand(5, 300)
    before = gate.clone(), up.clone()
    torch.testing.assert_close(kernels.swiglu(gate, up, "silu"), reference.swiglu(gate, up, "silu"))
    torch.testing.assert_close(
        kernels.swiglu_backward(grad, gate, up, "gelu", True), reference.swiglu_backward(grad, gate, up, "gelu", True)
    )
    assert torch.equal(gate, before[0]) and torch.equal(up, before[1])


@pytest.mark.parametrize("shape", [(0, 16), (4, 0)])
def test_nothing_to_do(shape):
    empty = normal(*shape)
    assert kernels.swiglu(empty, empty, "silu").shape == shape
    grads = kernels.swiglu_backward(empty, empty, empty, "silu", True)
    assert [x.shape for x in grads] == [torch.Size(shape)] * 3


def test_large_values_and_nan_come_through():
    gate = torch.tensor([[-1e4, -100.0, -0.0, 100.0, 1e4, float("nan")]], device=DEVICE)
    for activation in ACTIVATIONS:
        hidden = kernels.swiglu(gate, None, activation)
        grad = kernels.swiglu_backward(torch.ones_like(gate), gate, None, activation, False)[0]
        torch.testing.assert_close(hidden, reference.swiglu(gate, None, activation), equal_nan=True)
        slopes = (200.0, 2e4) if activation == "relu2" else (1.0, 1.0)
        expected = torch.tensor([0.0, 0.0, grad[0, 2].round(), *slopes], device=DEVICE)
        assert torch.equal(grad[0, :5].round(), expected)
        assert hidden[0, 5].isnan()


def test_every_output_element_is_written():
    gate, up = normal(7, 300), normal(7, 300, seed=1)
    with poisoned_memory():
        for result in (kernels.swiglu(gate, up, "silu"), *kernels.swiglu_backward(up, gate, up, "silu", True)):
            assert not result.isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gate: (gate.double(), None, "silu"), "float64"),
        (lambda gate: (gate.t(), None, "silu"), "contiguous last dimension"),
        (lambda gate: (gate[0], None, "silu"), "expected \\(tokens, neurons\\)"),
        (lambda gate: (gate, gate[:2], "silu"), "up is \\(2, 8\\)"),
        (lambda gate: (gate, None, "swish"), "unknown activation 'swish'"),
    ],
)
def test_what_the_kernels_refuse(change, message):
    with pytest.raises(SlamkernError, match=message):
        kernels.swiglu(*change(normal(4, 8)))


def test_unavailable_reason_names_the_reason():
    assert kernels.unavailable_reason(DEVICE) is None
    assert "not meta" in kernels.unavailable_reason("meta")
