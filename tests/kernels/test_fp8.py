"""Rows in FP8 from the Triton kernel: the very numbers of the reference, row for row."""

import pytest
import torch
from support.kernel_checks import DEVICE, DTYPES, halves, normal

from slamkern.errors import SlamkernError
from slamkern.ops import reference
from slamkern.ops.dispatch import backends

pytestmark = pytest.mark.skipif(backends(DEVICE)["triton"] is not None, reason=str(backends(DEVICE)["triton"]))
if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("this GPU has no e4m3 numbers", allow_module_level=True)


def quantize(x, multiplier=None):
    return torch.ops.slamkern.quantize_rows(x, multiplier, "triton")


def assert_same(actual, expected):
    """Bitwise, but for what Triton's interpreter rounds wrongly where e4m3 is emulated."""
    (values, scale), (expected, expected_scale) = actual, expected
    assert values.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    assert torch.equal(scale, expected_scale)
    values, expected = values.float(), expected.float()
    if DEVICE == "cpu":
        # Below the normal numbers it cuts off.
        small = expected.abs() < 2**-6
        assert ((values - expected).abs()[small] <= 2**-9).all()
        # A tie goes away from zero, not to the even number.
        away = (values.abs() > expected.abs()) & (values.abs() <= 1.125 * expected.abs()) & (values * expected > 0)
        assert away.float().mean() < 0.05
        # A value that rounds up to a power of two comes out as half of it: the carry into the exponent is lost.
        lost = (expected != values) & (torch.frexp(expected).mantissa.abs() == 0.5) & ~(small | away)
        assert torch.equal(values[lost], expected[lost] / 2) and lost.float().mean() < 0.1
        values = values.where(~(lost | small | away), expected)
    assert torch.equal(values, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 48), (3, 1000), (5, 33)])  # several rows a program, one, an odd width
def test_equals_the_reference(dtype, shape):
    rows = torch.logspace(-4, 3, shape[0], device=DEVICE)[:, None]  # what a scale is for
    x = (normal(*shape) * rows).to(dtype)
    multiplier = normal(shape[1], seed=1).abs()
    assert_same(quantize(x), reference.quantize_rows(x, None))
    assert_same(quantize(x, multiplier), reference.quantize_rows(x, multiplier))


def test_zeros_strides_and_no_rows():
    x = normal(4, 32)
    x[1] = 0
    values, scale = quantize(x)
    assert (scale > 0).all() and not values[1].float().any()
    for part in halves(x, x):
        assert_same(quantize(part), reference.quantize_rows(x, None))
    empty, none = quantize(x[:0])
    assert empty.shape == (0, 32) and none.shape == (0,)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
def test_not_a_number_stays_one():
    x = normal(3, 16)
    x[0, 3], x[1, 2] = torch.nan, torch.inf
    values, scale = quantize(x)
    rows = (values.float() * scale[:, None]).isfinite().all(1)
    assert rows.tolist() == [False, False, True]


def test_mistakes_are_one_line():
    with pytest.raises(SlamkernError, match=r"multiplier is \(8,\) torch.float32; expected \(16,\)"):
        quantize(normal(2, 16), normal(8))
    with pytest.raises(SlamkernError, match="does not fit in registers"):
        quantize(normal(1, 40000))
