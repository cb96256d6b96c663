"""Rotary position embedding of queries and keys in one launch: one read and one write of each.

    y1 = x1 * cos1 - x2 * sin1        y2 = x2 * cos2 + x1 * sin2        x = [x1 | x2 | rest], y = [y1 | y2 | rest]

x1, x2 are the halves of the first ``rotated`` elements of a head, the rest is copied; cos, sin: (batch or 1, tokens,
rotated). The backward is the same with sin1 and sin2 exchanged and negated. q, k: (batch, heads, tokens, width) with
any strides but the last, which is 1; outputs are new and lie in memory as (batch, tokens, heads, width), the order in
which projections make their inputs and read their gradients. Arithmetic is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.kernels import launch

HEADS = 4  # a program: cos and sin are read once for so many heads
_WARPS = 4
_VECTOR_BYTES = 16


@triton.jit
def _rotate_heads(
    x_ptr, y_ptr, cos1, cos2, sin1, sin2, batch, rows, tokens, first, heads, x_batch, x_token, x_head,
    WIDTH: tl.constexpr, ROTATED: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = ROTATED // 2
    columns = tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < HALF)[None, :]
    for index in tl.static_range(HEADS):
        head = (first + index).to(tl.int64)
        x_row = x_ptr + batch * x_batch + head * x_head + rows[:, None] * x_token
        y_row = y_ptr + ((batch * tokens + rows[:, None]) * heads + head) * WIDTH
        mask = inside & (head < heads)
        x1 = tl.load(x_row + columns[None, :], mask, other=0.0).to(tl.float32)
        x2 = tl.load(x_row + HALF + columns[None, :], mask, other=0.0).to(tl.float32)
        dtype = y_ptr.dtype.element_ty
        tl.store(y_row + columns[None, :], (x1 * cos1 - x2 * sin1).to(dtype), mask)
        tl.store(y_row + HALF + columns[None, :], (x2 * cos2 + x1 * sin2).to(dtype), mask)
        if WIDTH > ROTATED:
            others = ROTATED + tl.arange(0, BLOCK_P)
            rest = (rows < tokens)[:, None] & (others < WIDTH)[None, :] & (head < heads)
            tl.store(y_row + others[None, :], tl.load(x_row + others[None, :], rest).to(dtype), rest)


@triton.jit(do_not_specialize=["tokens"])
def rotary_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, tokens, q_heads, k_heads,
    q_batch, q_token, q_head, k_batch, k_token, k_head, cos_batch,
    INVERSE: tl.constexpr, WIDTH: tl.constexpr, ROTATED: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # A program owns BLOCK_T tokens of HEADS heads of q or of k.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    HALF: tl.constexpr = ROTATED // 2
    columns = tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < HALF)[None, :]
    at = batch * cos_batch + rows[:, None] * ROTATED + columns[None, :]
    cos1 = tl.load(cos_ptr + at, inside, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + at + HALF, inside, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + at, inside, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + at + HALF, inside, other=0.0).to(tl.float32)
    if INVERSE:
        sin1, sin2 = -sin2, -sin1
    q_groups = tl.cdiv(q_heads, HEADS)
    if group < q_groups:
        _rotate_heads(
            q_ptr, q_out_ptr, cos1, cos2, sin1, sin2, batch, rows, tokens, group * HEADS, q_heads,
            q_batch, q_token, q_head, WIDTH, ROTATED, HEADS, BLOCK_N, BLOCK_P,
        )  # fmt: skip
    else:
        _rotate_heads(
            k_ptr, k_out_ptr, cos1, cos2, sin1, sin2, batch, rows, tokens, (group - q_groups) * HEADS, k_heads,
            k_batch, k_token, k_head, WIDTH, ROTATED, HEADS, BLOCK_N, BLOCK_P,
        )  # fmt: skip


def tile_of(rotated: int, itemsize: int) -> launch.Strip:
    """Whole halves of a head; as many tokens as give every thread one 16-byte vector of each half."""
    block_n = triton.next_power_of_2(max(1, rotated // 2))
    vectors = _WARPS * 32 * _VECTOR_BYTES // itemsize
    return launch.Strip(max(1, vectors // block_n), block_n, _WARPS)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """q and k rotated, or rotated back, as ``dtype``; freshly allocated, in memory (batch, tokens, heads, width)."""
    _check(q, k, cos, sin)
    batch, q_heads, tokens, width = q.shape
    k_heads, rotated = k.shape[1], cos.shape[-1]
    outputs = [
        torch.empty(batch, tokens, heads, width, dtype=dtype, device=q.device).transpose(1, 2)
        for heads in (q_heads, k_heads)
    ]
    groups = triton.cdiv(q_heads, HEADS) + triton.cdiv(k_heads, HEADS)
    if batch * tokens * groups * width == 0:
        return outputs[0], outputs[1]
    tile = tile_of(rotated, q.element_size())
    with launch.on(q.device):
        rotary_kernel[(triton.cdiv(tokens, tile.block_t), groups, batch)](
            q, k, cos, sin, *outputs, tokens, q_heads, k_heads,
            q.stride(0), q.stride(2), q.stride(1), k.stride(0), k.stride(2), k.stride(1),
            0 if cos.shape[0] == 1 else cos.stride(0),
            INVERSE=inverse, WIDTH=width, ROTATED=rotated, HEADS=HEADS, BLOCK_T=tile.block_t, BLOCK_N=tile.block_n,
            BLOCK_P=triton.next_power_of_2(max(1, width - rotated)), num_warps=tile.num_warps,
        )  # fmt: skip
    return outputs[0], outputs[1]


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 4 or (x.shape[0], *x.shape[2:]) != (q.shape[0], *q.shape[2:]) or x.device != q.device:
            raise SlamkernError(
                f"{name} is {tuple(x.shape)} on {x.device}; expected (batch, heads, tokens, width) as q,"
                f" {tuple(q.shape)} on {q.device}"
            )
        if x.stride(3) != 1 and x.shape[3] > 1:
            raise SlamkernError(f"{name} has element stride {x.stride(3)}; expected a contiguous last dimension")
    batch, _, tokens, width = q.shape
    for name, x in (("cos", cos), ("sin", sin)):
        if x.dim() != 3 or x.shape != cos.shape or x.shape[0] not in (1, batch) or x.shape[1] != tokens:
            raise SlamkernError(f"{name} is {tuple(x.shape)}; expected ({batch} or 1, {tokens}, rotated elements)")
        if x.device != q.device or not x.is_contiguous():
            raise SlamkernError(f"{name} is on {x.device}, strides {x.stride()}; expected contiguous on {q.device}")
    if cos.shape[2] % 2 or cos.shape[2] > width:
        raise SlamkernError(f"cannot rotate {cos.shape[2]} of {width} elements; expected an even number of them")
    for x in (q, k, cos, sin):
        if x.dtype not in launch.DTYPES:
            raise SlamkernError(f"the Triton kernels take bfloat16, float16 and float32, not {x.dtype}")
