"""Frozen weights in FP8: values that both directions of a Linear share, and the two products with them.

    w ~ scale[:, None] * values             values: (out, in) float8_e4m3fn, scale: (out,) float32, made once
    y  = x @ w.T  ~ (x_scale[:, None] * x_values) @ (scale[:, None] * values).T + bias
    dx = dy @ w   ~ (g_scale[:, None] * g_values) @ values,     g = dy * scale

Rows of ``x`` and ``g`` are quantized as they come. A weight's scale lies along the reduction of ``dx``, where a
product of FP8 numbers has no place for it, so it goes into ``dy`` before that is quantized: forward and backward see
the same bits of the weight.

On CUDA the products run in ``torch._scaled_mm`` (rowwise scales, bfloat16 out), which wants both operands contiguous
along the reduction: ``dx`` needs the values transposed, one more byte an element where that is kept. Elsewhere the
same values are multiplied in float32, which is slower than not quantizing at all and there to be checked against.

Quantizing is a pass of its own. In the epilogues of the activation and of its backward it would save 12 of the 25 bytes
that an element of a frozen FFN moves, at most 3 ms of the 100 of a step of 7B over 4,096 tokens. A scale needs the
largest of its row, so a program would hold rows of 11,008 neurons in registers as 16,384; compiled for sm_90 that takes
27 instructions an element forward and 55 backward, where 35 and 56 fit beside 4.2 TB/s: too near to build unmeasured.

Not here: which weights of a model are quantized, and where the originals are meanwhile (training/fp8.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules.surgery import Extended
from slamkern.ops import norm_fp8
from slamkern.ops.once import once_differentiable

MULTIPLE = 16  # both dimensions of a weight, for torch._scaled_mm
Rows = tuple[Tensor, Tensor]  # values (rows, width) float8_e4m3fn and scale (rows,) float32


class FP8Weight:
    """A weight (out, in) quantized row by row; ``keep_transposed`` spends a byte an element on the backward."""

    def __init__(self, weight: Tensor, backend: str = "auto", *, keep_transposed: bool = False) -> None:
        self.backend = backend
        self.values, self.scale = self.quantized(weight.detach())
        # The scale of the weight in input_gradient, where it is part of the gradient already.
        self._ones = torch.ones(1, weight.shape[1], dtype=torch.float32, device=weight.device)
        self._transposed: Tensor | None = None
        if keep_transposed:
            self._transposed = self.transposed()

    def quantized(self, x: Tensor, multiplier: Tensor | None = None) -> Rows:
        """Rows of ``x``, or of ``x * multiplier`` with a number for each column."""
        return norm_fp8.eager_quantize_rows(x, multiplier, self.backend)

    def project(self, rows: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``x @ w.T + bias`` of quantized rows (tokens, in): (tokens, out)."""
        return _product(rows, self.values.t(), self.scale.unsqueeze(0), bias, dtype, fast=True)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """``grad @ w`` of (tokens, out): (tokens, in), in the dtype of ``grad``."""
        # Fast sums lose up to a sixth of 11,008 terms of one sign (benchmarks.fp8_accumulation), layer after layer.
        rows = self.quantized(grad, self.scale)
        return _product(rows, self.transposed().t(), self._ones, None, grad.dtype, fast=False)

    def transposed(self) -> Tensor:
        """The values as (in, out), contiguous: the copy that is kept, or else made for this call."""
        if self._transposed is not None:
            return self._transposed
        copy = self.values.view(torch.uint8).t().clone(memory_format=torch.contiguous_format)
        return copy.view(self.values.dtype)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the products see, (out, in)."""
        return (self.values.to(dtype) * self.scale[:, None]).to(dtype)

    @property
    def bytes_transposed(self) -> int:
        """Of the copy for the backward; 0 where there is none."""
        return 0 if self._transposed is None else self._transposed.nbytes

    def tensors(self) -> list[Tensor]:
        """What it keeps in memory."""
        return [tensor for tensor in (self.values, self.scale, self._transposed) if tensor is not None]


def _product(
    rows: Rows, right: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, *, fast: bool
) -> Tensor:
    """Rows times ``right`` (reduction, columns), contiguous along the reduction; scale: (1, columns)."""
    values, row_scale = rows
    if values.shape[0] == 0:  # a library call may refuse no rows
        return torch.empty(0, right.shape[1], dtype=dtype, device=values.device)
    if values.is_cuda:
        return torch._scaled_mm(
            values, right, row_scale.unsqueeze(1), scale, bias=bias, out_dtype=dtype, use_fast_accum=fast
        )
    y = (values.float() @ right.float()).mul_(row_scale[:, None]).mul_(scale)
    return (y if bias is None else y.add_(bias)).to(dtype)


Weight = Tensor | FP8Weight


def project(x: Tensor, *projections: tuple[Weight, Tensor | None]) -> list[Tensor]:
    """``F.linear`` of ``x`` (tokens, in) with each (weight, bias); quantized once for all that are in FP8."""
    rows: Rows | None = None
    outputs = []
    for weight, bias in projections:
        if isinstance(weight, Tensor):
            outputs.append(F.linear(x, weight, bias))
            continue
        rows = weight.quantized(x) if rows is None else rows
        outputs.append(weight.project(rows, bias, x.dtype))
    return outputs


def input_gradient(*terms: tuple[Tensor, Weight]) -> Tensor:
    """The sum of ``grad @ weight`` over (grad, weight); autograd must be off, as it is in a backward."""
    (grad, weight), *others = terms
    total = grad @ weight if isinstance(weight, Tensor) else weight.input_gradient(grad)
    for grad, weight in others:
        if isinstance(weight, Tensor):
            torch.addmm(total, grad, weight, out=total)
        else:
            total.add_(weight.input_gradient(grad))
    return total


class _Linear(torch.autograd.Function):
    """``x @ w.T + bias`` with a frozen weight and bias: nothing is saved but the weight, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FP8Weight, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        (y,) = project(x.reshape(-1, x.shape[-1]), (weight, bias))
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.weight.input_gradient(grad.reshape(-1, grad.shape[-1])).view(ctx.shape), None, None


class FP8Linear(Extended):
    """Forward of an ``nn.Linear`` whose frozen weight is used in FP8; x is (..., in)."""

    slamkern_fp8: FP8Weight
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            raise SlamkernError("FP8 weights do not run under autocast; load the model in the dtype to train in")
        return _Linear.apply(x, weight_of(self), self.bias)


def weight_of(linear: nn.Module) -> Weight:
    """What a Linear computes with: its parameter, or that in FP8."""
    weight: Any = linear.weight
    quantized: FP8Weight | None = linear.__dict__.get("slamkern_fp8")
    if quantized is None:
        return weight
    if weight.requires_grad:
        raise SlamkernError("a weight in FP8 requires a gradient; choose what is trained before quantizing the rest")
    return quantized


def quantized_modules(model: nn.Module) -> Sequence[FP8Linear]:
    """The modules of a model whose weight is in FP8 now."""
    return [module for module in model.modules() if isinstance(module, FP8Linear)]


def resident_tensors(model: nn.Module) -> list[Tensor]:
    """What a model keeps on its devices: parameters and buffers, FP8 weights, and not their originals elsewhere."""
    inside = quantized_modules(model)
    away = {id(m.weight) for m in inside if m.weight.device != m.slamkern_fp8.values.device}
    here = [parameter for parameter in model.parameters() if id(parameter) not in away]
    return [*here, *model.buffers(), *(tensor for m in inside for tensor in m.slamkern_fp8.tensors())]


def workspace(model: nn.Module) -> tuple[int, int]:
    """Bytes that one product with an FP8 weight takes beside its result: fixed ones, and those per row."""
    weights = [module.slamkern_fp8 for module in quantized_modules(model)]
    largest = max((weight.values.numel() for weight in weights), default=0)
    widest = max((max(weight.values.shape) for weight in weights), default=0)
    if weights and weights[0].values.is_cuda:
        return largest, widest  # the transposed values, the quantized rows
    return 5 * largest, 5 * widest  # both in float32 too
