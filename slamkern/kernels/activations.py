"""Activation functions of the kernels and their derivatives, on float32 tiles.

The formulas are those of ``reference.activate`` and ``reference.activation_derivative``, in forms that lose nothing in
float32 and need no libdevice call that the interpreter lacks: ``0.5 * (1 + tanh(y))`` is ``sigmoid(2 y)``, and

    x * sigmoid(x) = x * r * r,    r = rsqrt(1 + exp2(-x / ln 2)),

two instructions of the special function unit and no division with its range checks (14.8 instead of 21.8 machine
instructions an element of ``silu(gate) * up`` on sm_90). Rounding ``x / ln 2`` costs a relative error of
``|x| * 2^-24`` of small results, far below one rounding of 16-bit outputs. ``EXACT``, for float32 inputs, is within 2
units in the last place: argument reduced in two steps, a polynomial, a division that is rounded to nearest (``/`` is
not on a GPU), and the rounding of ``1 + exp(-x)`` given back after it.
Results below 1e-36 in size may come out as zero, as torch's do: ``exp(-x)`` overflows there.

``ACTIVATION`` is a constexpr: one of ``silu gelu gelu_tanh relu relu2``; each choice compiles to its own kernel.
"""

import triton
import triton.language as tl

# Constants stand on the right of a product: the interpreter mistakes `constexpr * tensor` for a constexpr.
_LOG2_E = tl.constexpr(1.4426950408889634)
# ln 2 in two parts (Cephes): multiples of the first up to 2^15 are exact.
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)
_INV_SQRT2 = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_TWO_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _bounded(x, BOUND: tl.constexpr):
    # Where a derivative is 0 or 1 in float32 already: keeps infinity times zero out of it. NaN may become a number.
    return tl.minimum(tl.maximum(x, -BOUND), BOUND)


@triton.jit
def _exp_minus(x, EXACT: tl.constexpr):
    """``exp(-x)``, infinite from x = -88.7 down."""
    if EXACT:
        y = _bounded(x, 128.0) * -1.0
        whole = tl.floor(y * _LOG2_E + 0.5)
        rest = (y - whole * _LN2_HIGH) - whole * _LN2_LOW
        # Taylor's polynomial: |rest| <= 0.35, and the next term is below 2^-27.
        e = rest * (1.0 / 5040) + (1.0 / 720)
        e = e * rest + (1.0 / 120)
        e = e * rest + (1.0 / 24)
        e = e * rest + (1.0 / 6)
        e = e * rest + 0.5
        e = e * rest + 1.0
        e = (e * rest + 1.0) * tl.exp2(whole)
    else:
        e = tl.exp2(x * -_LOG2_E)
    return e


@triton.jit
def _times_sigmoid(x, z, EXACT: tl.constexpr):
    """``x * sigmoid(z)``."""
    e = _exp_minus(z, EXACT)
    denominator = 1.0 + e
    r = tl.rsqrt(denominator)
    if EXACT:
        lost = tl.where(e > 1.0, 1.0 - (denominator - e), e - (denominator - 1.0))
        y = tl.div_rn(x, denominator)
        # Only where something was lost: infinity times zero must not come out of a correction.
        y = tl.where(tl.abs(lost) > 0.0, y - y * (lost * r * r), y)
    else:
        y = x * r * r
    return y


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """``act_fn(x)`` of a float32 tile."""
    if ACTIVATION == "silu":
        y = _times_sigmoid(x, x, EXACT)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * _INV_SQRT2))
    elif ACTIVATION == "gelu_tanh":
        y = _times_sigmoid(x, (x + x * x * x * _CUBIC) * _TWO_SQRT_2_OVER_PI, EXACT)
    else:
        tl.static_assert((ACTIVATION == "relu") or (ACTIVATION == "relu2"))
        # A comparison, not a maximum: NaN must come out as NaN.
        y = tl.where(x <= 0.0, 0.0, x)
        if ACTIVATION == "relu2":
            y = y * y
    return y


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """``act_fn(x)`` and ``d act_fn(x) / dx`` of a float32 tile, sharing the transcendental part."""
    if ACTIVATION == "silu":
        s = _times_sigmoid(1.0, x, EXACT)
        y = x * s
        slope = s * (1.0 + _bounded(x, 128.0) * (1.0 - s))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * _INV_SQRT2))
        y = x * cdf
        near = _bounded(x, 20.0)
        slope = cdf + near * tl.exp(-0.5 * near * near) * _INV_SQRT_2PI
    elif ACTIVATION == "gelu_tanh":
        # Beyond 10 the function is x or 0 and its slope 1 or 0.
        near = _bounded(x, 10.0)
        z = (near + near * near * near * _CUBIC) * _TWO_SQRT_2_OVER_PI
        # s * (1 - s) without the cancellation in 1 - s, which the cubic's slope would magnify.
        decay = tl.exp(-tl.abs(z))
        larger = 1.0 / (1.0 + decay)
        s = tl.where(z < 0.0, decay * larger, larger)
        y = x * s
        slope = s + near * decay * larger * larger * (1.0 + 3.0 * (near * near * _CUBIC)) * _TWO_SQRT_2_OVER_PI
        slope = tl.where(x == x, slope, x)
    elif ACTIVATION == "relu2":
        positive = tl.where(x <= 0.0, 0.0, x)
        y = positive * positive
        slope = positive + positive
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.where(x <= 0.0, 0.0, x)
        slope = tl.where(x > 0.0, 1.0, 0.0)
    return y, slope
