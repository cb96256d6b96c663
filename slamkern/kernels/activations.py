"""Activation functions of the kernels and their derivatives, on float32 tiles.

The formulas are those of ``reference.activate`` and ``reference.activation_derivative``, in forms that lose nothing in
float32 and need no libdevice call that the interpreter lacks: ``0.5 * (1 + tanh(y))`` is ``sigmoid(2 y)``.
``ACTIVATION`` is a constexpr: one of ``silu gelu gelu_tanh relu``; each choice compiles to its own kernel.
"""

import triton
import triton.language as tl

# Constants stand on the right of a product: the interpreter mistakes `constexpr * tensor` for a constexpr.
_INV_SQRT2 = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_TWO_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """``act_fn(x)`` of a float32 tile."""
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * _INV_SQRT2))
    elif ACTIVATION == "gelu_tanh":
        y = x * tl.sigmoid((x + x * x * x * _CUBIC) * _TWO_SQRT_2_OVER_PI)
    else:
        tl.static_assert(ACTIVATION == "relu")
        # A comparison, not a maximum: NaN must come out as NaN.
        y = tl.where(x <= 0.0, 0.0, x)
    return y


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr):
    """``act_fn(x)`` and ``d act_fn(x) / dx`` of a float32 tile, sharing the transcendental part."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(x)
        y = x * s
        slope = s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * _INV_SQRT2))
        y = x * cdf
        slope = cdf + x * tl.exp(-0.5 * x * x) * _INV_SQRT_2PI
    elif ACTIVATION == "gelu_tanh":
        z = (x + x * x * x * _CUBIC) * _TWO_SQRT_2_OVER_PI
        # s * (1 - s) without the cancellation in 1 - s, which the cubic's slope would magnify.
        decay = tl.exp(-tl.abs(z))
        larger = 1.0 / (1.0 + decay)
        s = tl.where(z < 0.0, decay * larger, larger)
        y = x * s
        slope = s + x * decay * larger * larger * (1.0 + 3.0 * (x * x * _CUBIC)) * _TWO_SQRT_2_OVER_PI
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.where(x <= 0.0, 0.0, x)
        slope = tl.where(x > 0.0, 1.0, 0.0)
    return y, slope
