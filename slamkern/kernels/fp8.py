"""Rows in FP8, each with a scale of its own: one read of x, one write of one byte an element and one number a row.

    scale = max |x * multiplier| / 448        values = round(x * multiplier / scale)

x: (rows, width); multiplier: (width,) float32 or None; values: (rows, width) float8_e4m3fn, whose largest number is
448; scale: (rows,) float32, never 0. A whole row is held in registers, as in rmsnorm.py. GPUs before sm_89 have no
e4m3.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.kernels import launch

_STEP = tl.constexpr(1 / 448)  # a product rounds the same everywhere; a division by a constant does not
_LEAST = tl.constexpr(2.0**-126)  # the smallest normal float32, whose reciprocal is finite


@triton.jit
def _larger(a, b):
    # Not a number wins, so that it shows in the scale of its row: how a cast to e4m3 treats it differs.
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["tokens"])
def quantize_rows_kernel(
    x_ptr, multiplier_ptr, values_ptr, scale_ptr, tokens, width, x_stride, values_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns BLOCK_T whole rows.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], inside, other=0.0).to(tl.float32)
    if multiplier_ptr is not None:
        x *= tl.load(multiplier_ptr + columns, columns < width, other=0.0)[None, :]
    scale = _larger(tl.reduce(tl.abs(x), 1, _larger) * _STEP, _LEAST)
    values = x * tl.div_rn(1.0, scale)[:, None]
    to = values_ptr + rows[:, None] * values_stride + columns[None, :]
    tl.store(to, values.to(values_ptr.dtype.element_ty), inside)
    tl.store(scale_ptr + rows, scale, rows < tokens)


def quantize_rows(x: Tensor, multiplier: Tensor | None) -> tuple[Tensor, Tensor]:
    """``values`` (rows, width) float8_e4m3fn and ``scale`` (rows,) float32."""
    launch.check_whole_rows("x", x)
    if multiplier is not None and (
        multiplier.shape != x.shape[1:] or multiplier.dtype != torch.float32 or not multiplier.is_contiguous()
    ):
        raise SlamkernError(
            f"multiplier is {tuple(multiplier.shape)} {multiplier.dtype}; expected ({x.shape[1]},) float32, contiguous"
        )
    if launch.capability(x.device) < (8, 9):
        raise SlamkernError("GPUs before sm_89 (Ada) have no FP8 numbers; use backend='reference'")
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if values.numel() == 0:
        return values, scale
    tokens, width = x.shape
    tile = launch.whole_rows(width, x.element_size())
    with launch.on(x.device):
        quantize_rows_kernel[(launch.ceil_div(tokens, tile.block_t),)](
            x, multiplier, values, scale, tokens, width, x.stride(0), values.stride(0),
            BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
        )  # fmt: skip
    return values, scale
