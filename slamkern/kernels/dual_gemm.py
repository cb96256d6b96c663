"""``hidden = act(x @ w_gate^T) * (x @ w_up^T)`` and its statistics in one kernel: the two products never reach memory.

x: (tokens, width); w_gate, w_up: (neurons, width), as nn.Linear holds them; hidden: (tokens, neurons). Both products
accumulate in float32; activation, product and the moments per language are computed from the accumulators, before any
rounding. gate and up are written only on request (a backward pass needs them).

On sm_90 and newer a persistent grid loads tiles through tensor-map descriptors made on the host (TMA); elsewhere,
where a row is not a multiple of 16 bytes, in float32, or where gate and up are kept too (the persistent kernel would
spill), programs load through pointers. Both share the epilogue. The two products cost what a GEMM library takes for
them, so fusing can win a few percent at most: use it where it is measured faster.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from slamkern.errors import SlamkernError
from slamkern.kernels import autotune, launch
from slamkern.kernels.epilogue import finish_tile
from slamkern.kernels.glu import ACTIVATIONS
from slamkern.kernels.glu_stats import OBSERVABLES
from slamkern.kernels.merge_moments import Merger, Partials, empty_partials

_GROUP_M = 8  # row tiles that walk along the weights together, so that both stay in L2
_PARTIAL_BYTES = 256 * 2**20  # a launch covers at most the rows whose partials fit in this


@triton.jit
def _place(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    # Tiles in column order inside bands of GROUP_M row tiles.
    band = tile // (GROUP_M * tiles_n)
    first = band * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return first + within % height, within // height


@triton.jit(do_not_specialize=["tokens", "languages"])
def gated_linear_kernel(
    x_ptr, w_gate_ptr, w_up_ptr, hidden_ptr, gate_ptr, up_ptr,
    language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
    tokens, neurons, width, languages, x_stride, w_gate_stride, w_up_stride,
    ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # A program owns one BLOCK_M x BLOCK_N tile of hidden.
    tile_m, tile_n = _place(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tl.cdiv(neurons, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    # Rows past the end repeat the last one: their loads need no mask, their results are never stored.
    x_at = x_ptr + tl.minimum(rows, tokens - 1).to(tl.int64)[:, None] * x_stride + depth[None, :]
    weight_row = tl.minimum(columns, neurons - 1).to(tl.int64)[None, :]
    gate_at = w_gate_ptr + weight_row * w_gate_stride + depth[:, None]
    up_at = w_up_ptr + weight_row * w_up_stride + depth[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, width, BLOCK_K):
        in_depth = depth < width - k
        x = tl.load(x_at + k, in_depth[None, :], other=0.0)
        w_gate = tl.load(gate_at + k, in_depth[:, None], other=0.0)
        w_up = tl.load(up_at + k, in_depth[:, None], other=0.0)
        if WIDEN:
            x, w_gate, w_up = x.to(tl.float32), w_gate.to(tl.float32), w_up.to(tl.float32)
        gate = tl.dot(x, w_gate, gate, input_precision="ieee")
        up = tl.dot(x, w_up, up, input_precision="ieee")
    finish_tile(
        gate, up, hidden_ptr, gate_ptr, up_ptr, language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
        tokens, neurons, languages, tile_m, tile_n, ACTIVATION, OBSERVE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "languages"])
def gated_linear_tma_kernel(
    x_map, w_gate_map, w_up_map, hidden_ptr, gate_ptr, up_ptr,
    language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
    tokens, neurons, width, languages, programs,
    ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # A program owns every `programs`-th tile of hidden; the copy engine fills what lies outside the matrices with zero.
    tiles_m, tiles_n = tl.cdiv(tokens, BLOCK_M), tl.cdiv(neurons, BLOCK_N)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, programs):
        tile_m, tile_n = _place(tile, tiles_m, tiles_n, GROUP_M)
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, width, BLOCK_K):
            x = x_map.load([tile_m * BLOCK_M, k])
            w_gate = w_gate_map.load([tile_n * BLOCK_N, k])
            w_up = w_up_map.load([tile_n * BLOCK_N, k])
            if WIDEN:
                x, w_gate, w_up = x.to(tl.float32), w_gate.to(tl.float32), w_up.to(tl.float32)
            gate = tl.dot(x, w_gate.T, gate, input_precision="ieee")
            up = tl.dot(x, w_up.T, up, input_precision="ieee")
        finish_tile(
            gate, up, hidden_ptr, gate_ptr, up_ptr,
            language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
            tokens, neurons, languages, tile_m, tile_n, ACTIVATION, OBSERVE,
        )  # fmt: skip


def gated_linear(
    x: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    language_ids: Tensor | None,
    num_languages: int,
    activation: str,
    observe: str,
    save_projections: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, Tensor, Tensor, Tensor] | None]:
    """``hidden``, the projections ``gate`` and ``up`` where ``save_projections``, and the moments per language.

    x (tokens, width), weights (neurons, width), one dtype; hidden, gate, up (tokens, neurons) of that dtype. Moments:
    count (L,) int64, mean and m2 (L, neurons) float64, active (L, neurons) int64; None where ``language_ids`` is None.
    Statistics take up to 256 MiB of partials; more rows than fit go through several launches.
    """
    _check(x, w_gate, w_up, activation, observe)
    tokens, neurons = x.shape[0], w_gate.shape[0]
    hidden = torch.empty((tokens, neurons), dtype=x.dtype, device=x.device)
    gate, up = (torch.empty_like(hidden), torch.empty_like(hidden)) if save_projections else (None, None)
    capability = launch.capability(x.device)
    maps = capability >= (9, 0) and x.element_size() == 2 and not save_projections
    maps = maps and all(_mappable(matrix) for matrix in (x, w_gate, w_up))
    tiles = launch.dual_gemm(tokens, x.element_size(), capability)

    def run(tile: launch.GemmTile) -> None:
        _launch(x, w_gate, w_up, hidden, gate, up, None, None, 1, activation, observe, tile, maps)

    tile = tiles[0]
    if hidden.numel() > 0:  # the tile that is best without statistics serves with them too
        kind = f"gated_linear {activation} {x.dtype} {autotune.size_class(tokens)} x {x.shape[1]} x {neurons} {maps}"
        tile = autotune.tuned(kind, tiles, run, x.device)
    if language_ids is None:
        if hidden.numel() > 0:
            run(tile)
        return hidden, gate, up, None

    launch.check_languages(language_ids, num_languages, x)
    merger = Merger(num_languages, neurons, x.device)
    if hidden.numel() > 0:
        parts = max(1, _PARTIAL_BYTES // (12 * num_languages * neurons))
        partials = empty_partials(min(parts, triton.cdiv(tokens, tile.block_m)), num_languages, neurons, x.device)
        for start in range(0, tokens, parts * tile.block_m):
            rows = slice(start, min(start + parts * tile.block_m, tokens))
            # A tile writes the counts of the languages it has; the others are the zeros put here.
            partials[0].zero_()
            _launch(
                x[rows], w_gate, w_up, hidden[rows], None if gate is None else gate[rows],
                None if up is None else up[rows], language_ids[rows].contiguous(), partials,
                num_languages, activation, observe, tile, maps,
            )  # fmt: skip
            merger.add(partials, triton.cdiv(rows.stop - start, tile.block_m))
    return hidden, gate, up, merger.moments()


def _launch(
    x: Tensor, w_gate: Tensor, w_up: Tensor, hidden: Tensor, gate: Tensor | None, up: Tensor | None,
    language_ids: Tensor | None, partials: Partials | None, languages: int, activation: str, observe: str,
    tile: launch.GemmTile, maps: bool,
) -> None:  # fmt: skip
    tokens, width, neurons = *x.shape, w_gate.shape[0]
    outputs = (hidden, gate, up, language_ids, *(partials or (None,) * 4))
    constants = dict(
        ACTIVATION=activation, OBSERVE=observe, WIDEN=launch.interpreted(x.device),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=_GROUP_M,
        num_warps=tile.num_warps, num_stages=tile.stages, maxnreg=tile.max_registers,
    )  # fmt: skip
    tiles = triton.cdiv(tokens, tile.block_m) * triton.cdiv(neurons, tile.block_n)
    with launch.on(x.device):
        if maps:
            blocks = ([tile.block_m, tile.block_k], [tile.block_n, tile.block_k], [tile.block_n, tile.block_k])
            matrices = (
                TensorDescriptor.from_tensor(matrix, block)
                for matrix, block in zip((x, w_gate, w_up), blocks, strict=True)
            )
            programs = min(tiles, launch.processors(x.device))
            gated_linear_tma_kernel[(programs,)](
                *matrices, *outputs, tokens, neurons, width, languages, programs, **constants
            )
        else:
            gated_linear_kernel[(tiles,)](
                x, w_gate, w_up, *outputs, tokens, neurons, width, languages,
                x.stride(0), w_gate.stride(0), w_up.stride(0), **constants,
            )  # fmt: skip


def _mappable(matrix: Tensor) -> bool:
    # What a tensor map demands: 16-byte rows and base, positive shape, rows that do not overlap.
    row_bytes = matrix.stride(0) * matrix.element_size()
    aligned = matrix.data_ptr() % 16 == 0 and row_bytes % 16 == 0
    return aligned and matrix.numel() > 0 and matrix.stride(0) >= matrix.shape[1]


def _check(x: Tensor, w_gate: Tensor, w_up: Tensor, activation: str, observe: str) -> None:
    launch.check_rows("x", x)
    launch.check_rows("w_gate", w_gate)
    launch.check_like("w_up", w_up, w_gate)
    launch.check_choice("activation", activation, ACTIVATIONS)
    launch.check_choice("observable", observe, OBSERVABLES)
    if w_gate.shape[1] != x.shape[1] or w_gate.dtype != x.dtype or w_gate.device != x.device:
        raise SlamkernError(
            f"w_gate is {tuple(w_gate.shape)} {w_gate.dtype} on {w_gate.device}; expected "
            f"(neurons, {x.shape[1]}) {x.dtype} on {x.device}"
        )
