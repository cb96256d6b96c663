"""RMS norm and its input gradient: one read of every input, one write of every output, one number a row kept.

    rstd = 1 / sqrt(mean(x^2) + eps)        y = weight * x * rstd
    dx = rstd * (g - x * rstd^2 * mean(g * x)),   g = grad * weight

x, y, grad, dx: (rows, width); weight: (width,), ``1 + weight`` where the style is ``gemma``; rstd: (rows,) float32.
Arithmetic is float32; the style ``llama`` rounds ``x * rstd`` before the weight as well. A whole row is held in
registers, so a row may have 64 KiB at most. The weight gradient is not here: a frozen norm has none.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.kernels import NORM_STYLES, launch


@triton.jit(do_not_specialize=["tokens"])
def rms_norm_kernel(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, tokens, width, x_stride, y_stride, eps,
    STYLE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns BLOCK_T whole rows.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, columns < width, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)
    y = x * rstd[:, None]
    if STYLE == "llama":
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
    if STYLE == "gemma":
        weight += 1.0
    to = y_ptr + rows[:, None] * y_stride + columns[None, :]
    tl.store(to, (y * weight[None, :]).to(y_ptr.dtype.element_ty), inside)
    tl.store(rstd_ptr + rows, rstd, rows < tokens)


@triton.jit(do_not_specialize=["tokens"])
def rms_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, tokens, width, grad_stride, x_stride, dx_stride,
    STYLE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns BLOCK_T whole rows.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    grad = tl.load(grad_ptr + rows[:, None] * grad_stride + columns[None, :], inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, columns < width, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_ptr + rows, rows < tokens, other=0.0)
    if STYLE == "gemma":
        weight += 1.0
    grad *= weight[None, :]
    slope = rstd * rstd * tl.sum(grad * x, axis=1) / width
    dx = rstd[:, None] * (grad - x * slope[:, None])
    tl.store(dx_ptr + rows[:, None] * dx_stride + columns[None, :], dx.to(dx_ptr.dtype.element_ty), inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, style: str) -> tuple[Tensor, Tensor]:
    """``y`` like ``x`` and ``rstd`` (rows,) float32."""
    _check(x, weight, style)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if y.numel() == 0:
        return y, rstd
    tokens, width = x.shape
    tile = launch.whole_rows(width, x.element_size())
    with launch.on(x.device):
        rms_norm_kernel[(launch.ceil_div(tokens, tile.block_t),)](
            x, weight, y, rstd, tokens, width, x.stride(0), y.stride(0), eps,
            STYLE=style, BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
        )  # fmt: skip
    return y, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, style: str) -> Tensor:
    """``dx`` like ``x``, freshly allocated; row strides may be anything, 0 included."""
    _check(x, weight, style)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if dx.numel() == 0:
        return dx
    launch.check_like("grad", grad, x)
    tokens, width = x.shape
    tile = launch.whole_rows(width, x.element_size())
    with launch.on(x.device):
        rms_norm_backward_kernel[(launch.ceil_div(tokens, tile.block_t),)](
            grad, x, weight, rstd, dx, tokens, width, grad.stride(0), x.stride(0), dx.stride(0),
            STYLE=style, BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
        )  # fmt: skip
    return dx


def _check(x: Tensor, weight: Tensor, style: str) -> None:
    launch.check_whole_rows("x", x)
    launch.check_choice("style of norm", style, NORM_STYLES)
    if weight.shape != x.shape[1:] or weight.device != x.device or not weight.is_contiguous():
        raise SlamkernError(
            f"weight is {tuple(weight.shape)} on {weight.device}; expected ({x.shape[1]},) on {x.device}, contiguous"
        )
