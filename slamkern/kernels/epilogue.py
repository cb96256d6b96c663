"""What the dual GEMM does with its two accumulators: activation, product, stores and the moments per language.

gate, up: one (BLOCK_M, BLOCK_N) float32 tile of each projection, in registers. hidden and, where asked for, gate and up
go to contiguous (tokens, neurons) matrices; the moments of every language present in the tile go to slot (row tile,
language) of the partials that merge_moments.py merges. Not a kernel: part of those in dual_gemm.py.
"""

import triton
import triton.language as tl

from slamkern.kernels.activations import activate
from slamkern.kernels.merge_moments import tile_moments


@triton.jit
def _finish_half(
    gate, up, row, column, hidden_ptr, gate_ptr, up_ptr, language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
    tokens, neurons, languages, tile_m, ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr,
):  # fmt: skip
    # Stores hidden (gate, up) of the tile at (row, column) and, per language present in it, the moments at slot
    # (row tile, language). One int64 base for the tile and int32 offsets in it: 64-bit addresses cost registers.
    HEIGHT: tl.constexpr = gate.shape[0]
    WIDTH: tl.constexpr = gate.shape[1]
    rows = row + tl.arange(0, HEIGHT)
    columns = column + tl.arange(0, WIDTH)
    inside = (rows < tokens)[:, None] & (columns < neurons)[None, :]
    base = row.to(tl.int64) * neurons + column
    at = tl.arange(0, HEIGHT)[:, None] * neurons + tl.arange(0, WIDTH)[None, :]
    if gate_ptr is not None:
        tl.store(gate_ptr + base + at, gate.to(gate_ptr.dtype.element_ty), inside)
        tl.store(up_ptr + base + at, up.to(up_ptr.dtype.element_ty), inside)
    observed = activate(gate, ACTIVATION)
    hidden = observed * up
    tl.store(hidden_ptr + base + at, hidden.to(hidden_ptr.dtype.element_ty), inside)
    if language_ptr is not None:
        if OBSERVE == "hidden":
            observed = hidden
        in_row = columns < neurons
        language = tl.load(language_ptr + rows, rows < tokens, other=-1)
        language = tl.where((language >= 0) & (language < languages), language, languages)
        present = tl.min(language, axis=0)
        while present < languages:
            member = language == present
            zero = tl.zeros((WIDTH,), tl.float32)
            count, mean, m2, active = tile_moments(observed, member, zero)
            part = tile_m.to(tl.int64) * languages + present
            slot = part * neurons + columns
            tl.store(mean_ptr + slot, mean, in_row)
            tl.store(m2_ptr + slot, m2, in_row)
            tl.store(active_ptr + slot, active, in_row)
            tl.store(count_ptr + part, count, column == 0)
            language = tl.where(member, languages, language)
            present = tl.min(language, axis=0)


@triton.jit
def finish_tile(
    gate, up, hidden_ptr, gate_ptr, up_ptr, language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
    tokens, neurons, languages, tile_m, tile_n, ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr,
):  # fmt: skip
    # Half of the columns at a time: whole tiles of both accumulators, hidden and deviations do not fit in registers.
    BLOCK_M: tl.constexpr = gate.shape[0]
    HALF: tl.constexpr = gate.shape[1] // 2
    gate_left, gate_right = gate.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
    up_left, up_right = up.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
    row, column = tile_m * BLOCK_M, tile_n * (2 * HALF)
    _finish_half(
        gate_left, up_left, row, column, hidden_ptr, gate_ptr, up_ptr,
        language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr, tokens, neurons, languages, tile_m, ACTIVATION, OBSERVE,
    )  # fmt: skip
    _finish_half(
        gate_right, up_right, row, column + HALF, hidden_ptr, gate_ptr, up_ptr,
        language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr, tokens, neurons, languages, tile_m, ACTIVATION, OBSERVE,
    )  # fmt: skip
