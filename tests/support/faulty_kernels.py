"""Kernels with planted faults, which the compile gate must find in their machine code (see compile_kernels.py)."""

import triton
import triton.language as tl
from support.kernel_cases import Case

from slamkern.kernels import glu, launch


@triton.jit
def transposed_product_kernel(
    grad_ptr, x_ptr, out_ptr, tokens, neurons, width, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    # Planted: columns of grad are gathered two bytes at a time, inside the loop over products.
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
    for start in range(0, tokens, BLOCK_T):
        gathered = tl.load(grad_ptr + (start + inner)[None, :] * neurons + (rows * 3)[:, None])
        total += tl.dot(gathered, tl.load(x_ptr + (start + inner)[:, None] * width + columns[None, :]))
    tl.store(out_ptr + rows[:, None] * width + columns[None, :], total.to(tl.bfloat16))


@triton.jit
def waiting_kernel(x_ptr, out_ptr, tokens, neurons, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    # Planted: all threads wait for one another in every tile.
    at = tl.arange(0, BLOCK_T)[:, None] * neurons + tl.arange(0, BLOCK_N)[None, :]
    for _ in range(0, tokens, BLOCK_T):
        tl.store(out_ptr + at, tl.load(x_ptr + at))
        tl.debug_barrier()
        at += BLOCK_T * neurons


@triton.jit
def busy_kernel(x_ptr, out_ptr, neurons, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    # Planted: more arithmetic than there is time for while memory moves 4 bytes.
    at = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None] * neurons + tl.arange(0, BLOCK_N)[None, :]
    x = tl.load(x_ptr + at).to(tl.float32)
    for _ in tl.static_range(4):
        x = x * tl.sigmoid(x)
    tl.store(out_ptr + at, x.to(tl.bfloat16))


def faulty_cases() -> dict[str, Case]:
    """By the fault."""
    strip = launch.strip(11008, 2, 4, 4)
    one = {"x_ptr": "*bf16", "out_ptr": "*bf16"}
    three = {f"{name}_ptr": "*bf16" for name in ("gate", "up", "hidden")}
    return {
        "spills": Case(glu.swiglu_kernel, three, {"ACTIVATION": "silu"}, launch.Strip(64, 256, 1)),
        "narrow loads": Case(transposed_product_kernel, {"grad_ptr": "*bf16", **one}, {}, launch.Strip(64, 128, 8)),
        "barriers": Case(waiting_kernel, one, {}, strip),
        "instructions": Case(busy_kernel, one, {}, strip),
    }
