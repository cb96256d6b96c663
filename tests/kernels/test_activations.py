"""Activations of the kernels against float64: two units in the last place; infinities, NaN, denormals as in torch."""

import pytest
import torch
from support.kernel_checks import DEVICE

pytest.importorskip("triton")
from slamkern import kernels
from slamkern.ops import ACTIVATIONS, reference

INF, NAN = float("inf"), float("nan")
EXTREMES = [INF, -INF, NAN, 3e38, -3e38, 1e13, -1e13, 100.0, -100.0, 1e-40, -1e-40, 0.0, -0.0]
TINY = 1e-36  # below, torch's SiLU is zero too


def units(actual, truth):
    """The error in units of the last place of the float32 number nearest to the truth."""
    nearest = truth.float().abs()
    return (actual.double() - truth).abs() / (torch.nextafter(nearest, torch.tensor(INF)).double() - nearest.double())


def forward(gate, activation="silu"):
    return kernels.swiglu(gate[None].to(DEVICE), None, activation)[0].cpu()


def slope(gate, activation):
    gate = gate[None].to(DEVICE)
    return kernels.swiglu_backward(torch.ones_like(gate), gate, None, activation, False)[0][0].cpu()


def test_silu_is_within_two_units_in_the_last_place():
    small = torch.logspace(-44, 0, 20_001, dtype=torch.float64).float()
    x = torch.cat((torch.linspace(-88, 100, 100_001), small, -small))
    truth = reference.activate(x.double(), "silu")
    error = units(forward(x), truth)
    assert error[truth.abs() > TINY].max() <= 2
    assert (forward(x).double() - truth).abs()[truth.abs() <= TINY].max() < 1e-42


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_half_precision_loses_nothing_but_the_rounding_of_the_result(activation):
    x = torch.linspace(-20, 20, 4001).bfloat16()
    x = x if activation == "silu" else x[x > -4]  # torch's double loses GELU's tail to 1 + tanh
    truth = reference.activate(x.double(), activation)
    # The interpreter truncates to bfloat16: a whole unit of 8 bits, and nothing more to speak of.
    relative = (forward(x, activation).double() - truth).abs() / truth.abs().clamp(min=TINY)
    assert relative.max() <= torch.finfo(torch.bfloat16).eps * (1 + 1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extremes(activation):
    x = torch.tensor(EXTREMES)
    expected = reference.activate(x.double(), activation).float()
    torch.testing.assert_close(forward(x, activation), expected, equal_nan=True, rtol=1e-6, atol=1e-35)
    actual, usual = slope(x, activation), x[x.isfinite()]
    if activation == "relu2":
        assert actual[:2].tolist() == [INF, 0] and actual[2].isnan()
        assert torch.equal(actual[x.isfinite()], 2 * usual.clamp(min=0))
        return
    # torch's own derivative is NaN at infinity; the limits are 1 and 0.
    assert actual[:2].tolist() == pytest.approx([1, 0], abs=1e-30)
    assert actual[2].isnan() or activation == "relu"
    left, right = (reference.activate(usual.double().clamp(-50, 50) + step, activation) for step in (-1e-6, 1e-6))
    torch.testing.assert_close(actual[x.isfinite()].double()[:-4], ((right - left) / 2e-6)[:-4], rtol=1e-4, atol=1e-6)
