"""Launch settings: pure functions of shape, dtype and device, and the checks every launcher shares.

The numbers come from offline compilation for sm_80, sm_90 and sm_100 (registers and spills are held by
``tests/kernels/budgets``) and from the access width of the hardware: 16 bytes a thread, whole rows of a strip
per warp. They have not been tuned by timing on a GPU.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from slamkern.errors import SlamkernError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_VECTOR_BYTES = 16
_WARP = 32
_MAX_ROW_BYTES = 65536  # of a row that is held in registers
# Rows of a tile of the statistics kernel: 4 loads of 16 bytes in flight a thread and matrix; 8 take 235 registers.
STATS_ROWS = 4


@dataclass(frozen=True)
class Strip:
    """A tile of ``block_t`` rows of a ``block_n``-wide column strip; a thread owns whole columns of the tile."""

    block_t: int
    block_n: int
    num_warps: int


def ceil_div(x: int, y: int) -> int:
    """``x / y`` rounded up."""
    return -(-x // y)


@functools.cache
def strip(neurons: int, itemsize: int, block_t: int, max_warps: int) -> Strip:
    """The widest strip of at most ``max_warps`` warps that is not wider than the row needs.

    A warp covers 32 vectors of 16 bytes of one row (256 bf16 or 128 fp32 columns). More columns than that a thread, or
    fewer, would halve the load width or put several rows in one warp and cost shuffles in the row reductions.
    """
    per_warp = _WARP * _VECTOR_BYTES // itemsize
    warps = max_warps
    while warps > 1 and per_warp * (warps // 2) >= neurons:
        warps //= 2
    return Strip(block_t, per_warp * warps, warps)


@functools.cache
def whole_rows(width: int, itemsize: int) -> Strip:
    """A tile of whole rows: four 16-byte vectors a thread, at most 16 warps a row.

    Rows narrower than the four vectors of one warp (1024 bf16 columns; heads' norms are) share a program.
    """
    per_warp = 4 * _WARP * _VECTOR_BYTES // itemsize
    block_n = 1 << max(0, width - 1).bit_length()
    return Strip(max(1, per_warp // block_n), block_n, min(16, max(1, block_n // per_warp)))


def part_rows(tokens: int, neurons: int, processors: int) -> int:
    """Rows of one program of the statistics kernel: parts enough for one wave of programs over all strips.

    Six programs of two warps and up to 168 registers a thread are resident on a multiprocessor of every target (five
    of float32 with SiLU, whose division takes up to 192), with 48 KiB of loads in flight. At least 64 rows, so that
    what a part stores and merges (24 bytes a neuron) is a few percent of what its rows move, and at most 512, which
    bounds how much the sums of a part can round.
    """
    strips = ceil_div(max(1, neurons), 512)
    wanted = max(1, 6 * processors // strips)
    return min(512, max(64, ceil_div(ceil_div(tokens, wanted), STATS_ROWS) * STATS_ROWS))


def most_strips(neurons: int) -> int:
    """How many strips a row has at most: the narrowest is one warp of float32."""
    return max(1, ceil_div(neurons, _WARP * _VECTOR_BYTES // 4))


def zero_moments(languages: int, neurons: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """count (languages,) int64, mean and M2 (languages, neurons) float64, active int64, of nothing."""
    shape = (languages, neurons)
    return (
        torch.zeros(languages, dtype=torch.int64, device=device),
        torch.zeros(shape, dtype=torch.float64, device=device),
        torch.zeros(shape, dtype=torch.float64, device=device),
        torch.zeros(shape, dtype=torch.int64, device=device),
    )


def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; 2 for the interpreter, whose programs run one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; the interpreter stands in for sm_90."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make ``device`` current for a launch: Triton launches on the current device, not on the tensors' one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def fresh(x: Tensor) -> Tensor:
    """Memory for a contiguous matrix like ``x``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def check_rows(name: str, x: Tensor) -> None:
    """Raise SlamkernError unless ``x`` is a (rows, columns) matrix the kernels can read in place."""
    if x.dim() != 2:
        raise SlamkernError(f"{name} has shape {tuple(x.shape)}; expected (tokens, neurons)")
    if x.dtype not in DTYPES:
        raise SlamkernError(f"{name} is {x.dtype}; the Triton kernels take bfloat16, float16 and float32")
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise SlamkernError(f"{name} has column stride {x.stride(1)}; expected a contiguous last dimension")


def check_whole_rows(name: str, x: Tensor) -> None:
    """The same for a kernel that holds whole rows in registers."""
    check_rows(name, x)
    if x.shape[1] * x.element_size() > _MAX_ROW_BYTES:
        raise SlamkernError(
            f"a row of {x.shape[1]} x {x.element_size()} bytes does not fit in registers (at most {_MAX_ROW_BYTES});"
            " use backend='reference'"
        )


def check_like(name: str, x: Tensor, first: Tensor) -> None:
    """Raise SlamkernError unless ``x`` is a readable matrix of the shape, dtype and device of ``first``."""
    if x.shape != first.shape or x.dtype != first.dtype or x.device != first.device:
        raise SlamkernError(
            f"{name} is {tuple(x.shape)} {x.dtype} on {x.device}; expected "
            f"{tuple(first.shape)} {first.dtype} on {first.device}"
        )
    if x.stride(1) != 1:
        check_rows(name, x)


def check_languages(language_ids: Tensor, num_languages: int, rows: Tensor) -> None:
    """Raise SlamkernError unless ``language_ids`` is one int32 a row and ``num_languages`` is positive."""
    if language_ids.shape != rows.shape[:1] or language_ids.dtype != torch.int32:
        raise SlamkernError(
            f"language_ids is {tuple(language_ids.shape)} {language_ids.dtype}; expected ({rows.shape[0]},) torch.int32"
        )
    if num_languages < 1:
        raise SlamkernError(f"num_languages is {num_languages}; statistics need at least one language")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise SlamkernError unless ``value`` is one of ``known``."""
    if value not in known:
        raise SlamkernError(f"unknown {name} {value!r}; known: {' '.join(known)}")
