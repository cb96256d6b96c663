"""Weight gradients of selected neurons: ``dW[r, c] = sum_t grad_out[t, rows[r]] * x[t, cols[c]]``.

For ``out = x @ W^T`` the gradient of W is ``grad_out^T @ x``. ``rows`` picks output neurons (rows of up_proj), ``cols``
input neurons (columns of down_proj); the kernel gathers them while it loads, so neither a slice of the operands
nor the full gradient is ever formed. float32 accumulation, rounded once. Where the selection leaves too few output
tiles to fill the device, the sum over tokens is split and the float32 parts are added in a fixed order: no atomics.

Does not check that indices are in range: that would wait for the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.kernels import autotune, launch


@triton.jit(do_not_specialize=["tokens", "split_tokens"])
def weight_grad_kernel(
    grad_ptr, x_ptr, rows_ptr, cols_ptr, out_ptr, tokens, split_tokens, height, breadth, grad_stride, x_stride,
    WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # A program owns a BLOCK_M x BLOCK_N tile of dW for one split of the tokens.
    tiles_n = tl.cdiv(breadth, BLOCK_N)
    split = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < height, n < breadth
    row, col = m, n
    if rows_ptr is not None:
        row = tl.load(rows_ptr + m, in_m, other=0)
    if cols_ptr is not None:
        col = tl.load(cols_ptr + n, in_n, other=0)
    first = split * split_tokens
    past = tl.minimum(first + split_tokens, tokens)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for offset in range(0, split_tokens, BLOCK_K):
        t = first + offset + tl.arange(0, BLOCK_K)
        in_t = (t < past)[:, None]
        grad = tl.load(grad_ptr + t[:, None] * grad_stride + row[None, :], in_t & in_m[None, :], other=0.0)
        x = tl.load(x_ptr + t[:, None] * x_stride + col[None, :], in_t & in_n[None, :], other=0.0)
        if WIDEN:
            grad, x = grad.to(tl.float32), x.to(tl.float32)
        total = tl.dot(tl.trans(grad), x, total, input_precision="ieee")
    at = (split * height + m)[:, None] * breadth + n[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), in_m[:, None] & in_n[None, :])


def sparse_weight_grad(grad_out: Tensor, x: Tensor, rows: Tensor | None = None, cols: Tensor | None = None) -> Tensor:
    """The gradient of ``W`` (O, I) for ``out = x @ W^T``, of the chosen rows and columns only.

    grad_out (tokens, O), x (tokens, I), one dtype; ``rows`` and ``cols`` int64 indices of output and input neurons,
    None for all. Returns (len(rows), len(cols)) of grad_out's dtype: ``(grad_out.T @ x)[rows][:, cols]``.
    """
    launch.check_rows("grad_out", grad_out)
    launch.check_rows("x", x)
    if x.shape[0] != grad_out.shape[0] or x.dtype != grad_out.dtype or x.device != grad_out.device:
        raise SlamkernError(
            f"x is {tuple(x.shape)} {x.dtype} on {x.device}; expected ({grad_out.shape[0]}, inputs) "
            f"{grad_out.dtype} on {grad_out.device}"
        )
    for name, index in (("rows", rows), ("cols", cols)):
        if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
            raise SlamkernError(f"{name} is {tuple(index.shape)} {index.dtype}; expected one dimension of torch.int64")
    tokens = x.shape[0]
    height = grad_out.shape[1] if rows is None else rows.shape[0]
    breadth = x.shape[1] if cols is None else cols.shape[0]
    if tokens == 0 or height * breadth == 0:
        return torch.zeros((height, breadth), dtype=x.dtype, device=x.device)

    def run(tile: launch.GemmTile) -> Tensor:
        tiles = triton.cdiv(height, tile.block_m) * triton.cdiv(breadth, tile.block_n)
        splits = launch.token_splits(tiles, tokens, launch.processors(x.device))
        out = torch.empty((splits, height, breadth), dtype=torch.float32 if splits > 1 else x.dtype, device=x.device)
        with launch.on(x.device):
            weight_grad_kernel[(tiles, splits)](
                grad_out, x, None if rows is None else rows.contiguous(), None if cols is None else cols.contiguous(),
                out, tokens, triton.cdiv(tokens, splits), height, breadth, grad_out.stride(0), x.stride(0),
                WIDEN=launch.interpreted(x.device), BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
                num_warps=tile.num_warps, num_stages=tile.stages,
            )  # fmt: skip
        return out[0] if splits == 1 else out.sum(0).to(x.dtype)

    kind = f"weight_grad {x.dtype} {autotune.size_class(tokens)} {height} x {breadth} {rows is None} {cols is None}"
    tiles = launch.weight_grad(x.element_size(), launch.capability(x.device))
    return run(autotune.tuned(kind, tiles, run, x.device))
