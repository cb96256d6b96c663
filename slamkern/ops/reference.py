"""The plain-torch twin of every op: the oracle in float64, the backend where nothing is compiled, the baseline.

Shapes: ``gate``, ``up``, ``hidden``, gradients: (tokens, neurons), any floating dtype, last dimension contiguous.
``language_ids``: (tokens,) int32; ids outside ``0..num_languages-1`` (``-1`` by convention) are left out of the
statistics. Arithmetic is float32 (float64 for float64 inputs), ``hidden`` is rounded once to the input dtype.

Not here: autograd (glu.py), state across calls (probe/stats.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from slamkern.kernels import ACTIVATIONS, NORM_STYLES
from slamkern.ops.moments import StatsTensors, merge_moments_

_LEAST_SCALE = 2.0**-126


def unavailable_reason(device_type: str) -> str | None:
    """Plain torch runs on every device."""
    return None


def activate(x: Tensor, activation: str) -> Tensor:
    """``act_fn(x)``: SiLU ``x * sigmoid(x)``, GELU (exact or tanh), ReLU, ReLU squared; shape and dtype of ``x``."""
    match activation:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
    raise ValueError(f"unknown activation {activation!r}; known: {' '.join(ACTIVATIONS)}")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def swiglu(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """``hidden = act_fn(gate) * up``, or ``act_fn(gate)`` where ``up`` is None (the FFN has no gate)."""
    observed = activate(_wide(gate), activation)
    return (observed if up is None else observed * _wide(up)).to(gate.dtype)


def plan_rows(language_ids: Tensor, num_languages: int, neurons: int, device: torch.device) -> tuple[Tensor, ...]:
    """What the statistics of a batch need to know of its ids, once for all layers: nothing here."""
    return ()


def swiglu_stats(
    gate: Tensor,
    up: Tensor | None,
    language_ids: Tensor,
    num_languages: int,
    activation: str,
    observe: str,
    into: StatsTensors | None = None,
    plan: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``hidden`` and the moments of the observed tensor per language and neuron.

    Returns ``hidden`` (tokens, neurons), ``count`` (languages,) int64, ``mean`` and ``m2`` (languages, neurons)
    float64, ``active`` (languages, neurons) int64. ``observe="gate"`` looks at ``act_fn(gate)``,
    ``observe="hidden"`` at ``act_fn(gate) * up``; ``m2`` is the sum of squared deviations from the mean.
    The moments are merged ``into`` those of earlier calls in place, where given. There is no use for ``plan`` here.
    """
    activated = activate(_wide(gate), activation)
    hidden = activated if up is None else activated * _wide(up)
    statistics = moments(hidden if observe == "hidden" else activated, language_ids, num_languages)
    return hidden.to(gate.dtype), *(statistics if into is None else merge_moments_(into, statistics))


def moments(observed: Tensor, language_ids: Tensor, num_languages: int) -> StatsTensors:
    """``count``, ``mean``, ``m2`` and ``active`` of ``observed`` (tokens, neurons) itself; see :func:`swiglu_stats`."""
    neurons = observed.shape[1]
    count = torch.zeros(num_languages, dtype=torch.int64, device=observed.device)
    mean = torch.zeros(num_languages, neurons, dtype=torch.float64, device=observed.device)
    m2 = torch.zeros_like(mean)
    active = torch.zeros(num_languages, neurons, dtype=torch.int64, device=observed.device)
    for language in range(num_languages):
        rows = observed[language_ids == language].double()
        if rows.shape[0] == 0:
            continue
        count[language] = rows.shape[0]
        mean[language] = rows.mean(0)
        m2[language] = (rows - mean[language]).square().sum(0)
        active[language] = (rows > 0).sum(0)
    return count, mean, m2, active


def activation_derivative(x: Tensor, activation: str) -> Tensor:
    """``d act_fn(x) / dx``; ReLU's derivative at 0 is 0, as in torch."""
    match activation:
        case "silu":
            sigmoid = torch.sigmoid(x)
            return sigmoid * (1 + x * (1 - sigmoid))
        case "gelu":
            density = torch.exp(-0.5 * x * x) * 0.3989422804014327  # 1 / sqrt(2 pi)
            return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density
        case "gelu_tanh":
            slope = 0.7978845608028654  # sqrt(2 / pi)
            tanh = torch.tanh(slope * (x + 0.044715 * x**3))
            return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope * (1 + 3 * 0.044715 * x * x)
        case "relu":
            return (x > 0).to(x.dtype)
        case "relu2":
            return 2 * F.relu(x)
    raise ValueError(f"unknown activation {activation!r}; known: {' '.join(ACTIVATIONS)}")


def swiglu_backward(
    grad_hidden: Tensor, gate: Tensor, up: Tensor | None, activation: str, need_hidden: bool, need_gate: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``grad_gate`` unless declined, ``grad_up`` (None without ``up``) and, on request, ``hidden`` again; all fresh."""
    wide_gate, wide_grad = _wide(gate), _wide(grad_hidden)
    grad_gate = None
    if need_gate:
        grad_activated = wide_grad if up is None else wide_grad * _wide(up)
        grad_gate = (grad_activated * activation_derivative(wide_gate, activation)).to(gate.dtype)
    grad_up = None if up is None else (wide_grad * activate(wide_gate, activation)).to(up.dtype)
    return grad_gate, grad_up, swiglu(gate, up, activation) if need_hidden else None


def rms_norm(x: Tensor, weight: Tensor, eps: float, style: str) -> tuple[Tensor, Tensor]:
    """``y`` like ``x`` and ``rstd = 1 / sqrt(mean(x^2) + eps)`` (rows,); x: (rows, width), weight: (width,).

    ``llama``: ``weight * round(x * rstd)``; ``olmo2``: ``round(weight * x * rstd)``; ``gemma``:
    ``round((1 + weight) * x * rstd)``, where ``round`` is to the dtype of ``x`` and everything inside is float32.
    """
    wide = _wide(x)
    mean_square = torch.linalg.vector_norm(wide, dim=-1).square_().div_(x.shape[-1])
    rstd = mean_square.add_(eps).rsqrt_()
    normed = wide * rstd[:, None] if wide is x else wide.mul_(rstd[:, None])
    if style == "llama":
        return normed.to(x.dtype).mul_(weight), rstd
    return normed.mul_(_norm_scale(weight, style)).to(x.dtype), rstd


def _norm_scale(weight: Tensor, style: str) -> Tensor:
    if style not in NORM_STYLES:
        raise ValueError(f"unknown style of norm {style!r}; known: {' '.join(NORM_STYLES)}")
    return 1 + _wide(weight) if style == "gemma" else _wide(weight)


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, style: str) -> Tensor:
    """``dx = rstd * (g - x * rstd^2 * mean(g * x))`` with ``g = grad * weight`` (gemma: ``1 + weight``), fresh."""
    wide = _wide(x)
    dx = _wide(grad) * _norm_scale(weight, style)
    slope = torch.linalg.vecdot(dx, wide).mul_(rstd * rstd / -x.shape[-1])
    return dx.addcmul_(wide, slope[:, None]).mul_(rstd[:, None]).to(x.dtype)


def rms_norm_weight_grad(grad: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """``sum over rows of grad * x * rstd``: (width,), float32 (float64 for float64 inputs), in every style."""
    return (_wide(x) * rstd[:, None]).mul_(grad).sum(0)


def quantize_rows(x: Tensor, multiplier: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows in FP8: ``values`` (rows, width) float8_e4m3fn and ``scale`` (rows,) float32 with ``x ~ scale * values``.

    ``scale = max |x| / 448`` of each row, 448 being the largest e4m3 number, and at least the smallest normal float32,
    so that a row of zeros stays one. ``multiplier`` (width,) float32: ``x * multiplier`` is quantized instead.
    """
    wide = x.float() if multiplier is None else x.float() * multiplier
    scale = wide.abs().amax(1).mul_(1 / 448).clamp_(min=_LEAST_SCALE)
    return (wide * scale.reciprocal()[:, None]).to(torch.float8_e4m3fn), scale
