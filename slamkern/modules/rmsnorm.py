"""RMS norms of a decoder: found by what they compute, run so that the backward needs the input and one number a row.

Three ways to write ``y = weight * x / sqrt(mean(x^2) + eps)`` are known (``NORM_STYLES``): Llama's, OLMo 2's
and Gemma's. As torch operations they save float32 copies of ``x``, eight bytes an element for bfloat16 inputs. Here
``x`` in its own dtype and ``rstd`` are saved, and a frozen weight gets no gradient.

A norm is recognized by running it on probe rows with random weights in float32 and bfloat16: what differs from all
three (LayerNorm, a clamp, another order of operations) stays as it is.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slamkern.modules.match import Match, decoder_of, replaced_forward, twin_of
from slamkern.modules.surgery import Extended, extend, is_transformed, restore, unextended
from slamkern.ops import NORM_STYLES, norm_fp8, reference
from slamkern.ops.once import once_differentiable


@dataclass
class Norm:
    """How one RMS norm computes: its epsilon, whose way of rounding, and the backend."""

    eps: float
    style: str
    backend: str = "auto"
    attribute: str = ""  # of the module, that has its epsilon


class RMSNorm(torch.autograd.Function):
    """``y`` of one :class:`Norm`; x: (..., width), weight: (width,) of the same dtype, trained or frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, rstd = norm_fp8.eager_rms_norm(rows, weight, norm.eps, norm.style, norm.backend)
        ctx.save_for_backward(x, weight, rstd)
        ctx.style, ctx.backend = norm.style, norm.backend
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        need_dx, need_dw, _ = ctx.needs_input_grad
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, x.shape[-1])
        dx = dw = None
        if need_dx:
            dx = norm_fp8.eager_rms_norm_backward(grad_rows, rows, weight, rstd, ctx.style, ctx.backend)
            dx = dx.view(x.shape)
        if need_dw:
            dw = reference.rms_norm_weight_grad(grad_rows, rows, rstd).to(weight.dtype)
        return dx, dw, None


class FusedNorm(Extended):
    """Forward of an RMS norm; x is (..., width).

    Where the dtypes of x and weight differ (autocast over float32 weights) the module's own forward runs: how such
    a pair promotes is its own choice, and was not probed. So it does under ``torch.export`` and ``torch.func``, and
    where the module has another epsilon than was found.
    """

    slamkern_norm: Norm
    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype or is_transformed() or not self.fits():
            return super().forward(x)
        return RMSNorm.apply(x, self.weight, self.slamkern_norm)

    def fits(self) -> bool:
        """Whether the module's epsilon is the one that was found."""
        norm = self.slamkern_norm
        eps = self.__dict__.get(norm.attribute)
        return isinstance(eps, float) and eps == norm.eps


def fuse_norm(module: nn.Module, norm: Norm) -> None:
    """Extend the class of this one instance with the fused forward, or let it compute as ``norm`` says from now on."""
    extend(module, FusedNorm, slamkern_norm=norm)


def unfuse_norm(module: FusedNorm) -> None:
    """Give the instance its own class back, as it was before :func:`fuse_norm`."""
    restore(module, "slamkern_norm")


def find_norms(model: nn.Module) -> list[Match[Norm]]:
    """Every norm-like module of the model's decoder: no children, and a weight (width,)."""
    prefix, decoder = decoder_of(model)
    matches = []
    for relative, module in decoder.named_modules():
        path = f"{prefix}.{relative}".strip(".")
        if isinstance(module, FusedNorm) and module.fits():
            matches.append(Match(path, module, module, module.slamkern_norm, replaced_forward(module)))
        elif _is_candidate(module):
            reason, norm = replaced_forward(module), None
            own = unextended(module) if isinstance(module, FusedNorm) else module
            if reason is None and (norm := _recognize(own)) is None:
                reason = f"{type(own).__name__} is not an RMS norm that slamkern knows"
            matches.append(Match(path, module, module, norm, reason))
    return matches


def _is_candidate(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1 and not module._modules


# Widths are probed as they are, rows by scale: eps weighs little in the first, half in the second, all in the third.
_ROW_SCALES = (30.0, 1.0, 1e-3, 1e-5)


@torch.no_grad()
def _recognize(module: nn.Module) -> Norm | None:
    """The RMS norm that a module computes, or None."""
    own = type(module)
    if set(module._parameters) != {"weight"} or module._buffers or len(inspect.signature(own.forward).parameters) != 2:
        return None  # a gate beside x makes another norm of it
    width = module._parameters["weight"].shape[0]  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(_ROW_SCALES), width, generator=generator) * torch.tensor(_ROW_SCALES)[:, None]
    weight = torch.randn(width, generator=generator)
    for name, eps in vars(module).items():
        if isinstance(eps, float) and (found := _style(module, x, weight, name, 2 * eps or 1e-6)) is not None:
            return Norm(eps, found, attribute=name)
    return None


def _style(module: nn.Module, x: Tensor, weight: Tensor, attribute: str, eps: float) -> str | None:
    """Whose RMS norm a module computes once its ``attribute`` is ``eps``, not the value that others may share."""
    own, twin, outputs = type(module), twin_of(module), []
    setattr(twin, attribute, eps)
    for dtype in (torch.float32, torch.bfloat16):
        twin._parameters = {"weight": nn.Parameter(weight.to(dtype))}
        try:
            y = own.forward(twin, x.to(dtype))
        except Exception:  # another signature, another device, another meaning: not one of ours
            return None
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != dtype:
            return None
        outputs.append(y)
    for style in NORM_STYLES:
        single = reference.rms_norm(x, weight, eps, style)[0]
        half = reference.rms_norm(x.bfloat16(), weight.bfloat16(), eps, style)[0]
        # Another order of float32 sums changes a few bfloat16 roundings in a thousand, another style a third of them.
        same = torch.allclose(single, outputs[0], rtol=1e-5, atol=1e-7)
        if same and (half != outputs[1]).float().mean() < 0.02:
            return style
    return None
