"""Moments inside the kernels: of one tile, of two merged parts, and of all partials of a language.

A part is (count, mean, M2 = sum of squared deviations from its mean, active = how many values > 0) per neuron.
Tiles are float32; parts merge by the pairwise formula of Chan, Golub and LeVeque (1979):

    mean = mean_a + (mean_b - mean_a) * n_b / n        M2 = M2_a + M2_b + (mean_b - mean_a)^2 * n_a * n_b / n

in float32 inside a program, in float64 across programs, always in the same order: results are bitwise reproducible and
there is no sum of squares to cancel. Partials are (parts, languages, neurons); a part is read only where its count > 0,
so the rest of the buffers is neither written nor initialised.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slamkern.kernels import launch

Partials = tuple[Tensor, Tensor, Tensor, Tensor]
Moments = tuple[Tensor, Tensor, Tensor, Tensor]


@triton.jit
def tile_mean(x, member):
    """Mean (columns,) over the rows of a float32 tile ``x`` that are ``member`` (rows,); at least one is."""
    return tl.sum(tl.where(member[:, None], x, 0.0), axis=0) / tl.sum(member.to(tl.int32), axis=0).to(tl.float32)


@triton.jit
def tile_moments(x, member, pivot):
    """Moments over the ``member`` rows of a tile ``x``; the mean is that of ``x - pivot`` (columns,).

    With a pivot near the mean, means keep their precision however far from zero the values lie.
    """
    count = tl.sum(member.to(tl.int32), axis=0)
    mean = tile_mean(x - pivot[None, :], member)
    # Around the rounded centre, not `x - pivot - mean`: off by count * rounding^2, and no second tile in registers.
    centre = pivot + mean
    deviation = tl.where(member[:, None], x - centre[None, :], 0.0)
    m2 = tl.sum(deviation * deviation, axis=0)
    active = tl.sum((member[:, None] & (x > 0.0)).to(tl.int32), axis=0)
    return count, mean, m2, active


@triton.jit
def merge(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Chan's formula for two parts; ``count_b`` > 0, counts in the float type of the means."""
    count = count_a + count_b
    delta = mean_b - mean_a
    share = count_b / count
    return mean_a + delta * share, m2_a + m2_b + delta * delta * (count_a * share)


@triton.jit(do_not_specialize=["parts", "languages"])
def merge_partials_kernel(
    part_count_ptr, part_mean_ptr, part_m2_ptr, part_active_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
    parts, languages, neurons,
    CONTINUE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns BLOCK_N neurons of one language. BLOCK_P parts at a time are merged in one step (the formula above
    # for many parts: their weighted mean, then their M2 plus weighted squared distances), so loads overlap.
    strips = tl.cdiv(neurons, BLOCK_N)
    language = (tl.program_id(0) // strips).to(tl.int64)
    strip = tl.program_id(0) % strips
    columns = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < neurons
    at = language * neurons + columns
    if CONTINUE:
        total = tl.load(count_ptr + strip * languages + language)
        mean = tl.load(mean_ptr + at, inside, other=0.0)
        m2 = tl.load(m2_ptr + at, inside, other=0.0)
        active = tl.load(active_ptr + at, inside, other=0)
    else:
        total = tl.full((), 0, tl.int64)
        mean = tl.zeros((BLOCK_N,), tl.float64)
        m2 = tl.zeros((BLOCK_N,), tl.float64)
        active = tl.zeros((BLOCK_N,), tl.int64)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        counts = tl.load(part_count_ptr + part.to(tl.int64) * languages + language, part < parts, other=0)
        added = tl.sum(counts.to(tl.int64), axis=0)
        if added > 0:
            present = (counts > 0)[:, None] & inside[None, :]
            cell = (part.to(tl.int64) * languages + language)[:, None] * neurons + columns[None, :]
            means = tl.load(part_mean_ptr + cell, present, other=0.0).to(tl.float64)
            m2s = tl.load(part_m2_ptr + cell, present, other=0.0).to(tl.float64)
            actives = tl.load(part_active_ptr + cell, present, other=0)
            weights = counts.to(tl.float64)[:, None]
            block_mean = tl.sum(means * weights, axis=0) / added.to(tl.float64)
            distance = tl.where(present, means - block_mean[None, :], 0.0)
            block_m2 = tl.sum(m2s + distance * distance * weights, axis=0)
            mean, m2 = merge(total.to(tl.float64), mean, m2, added.to(tl.float64), block_mean, block_m2)
            active += tl.sum(actives.to(tl.int64), axis=0)
            total += added
    tl.store(mean_ptr + at, mean, inside)
    tl.store(m2_ptr + at, m2, inside)
    tl.store(active_ptr + at, active, inside)
    # One count a strip: with CONTINUE every program reads back only what it wrote itself.
    tl.store(count_ptr + strip * languages + language, total)


def empty_partials(parts: int, languages: int, neurons: int, device: torch.device) -> Partials:
    """Uninitialised count (parts, languages) int32, mean and M2 float32, active int32 (parts, languages, neurons)."""
    shape = (parts, languages, neurons)
    return (
        torch.empty(shape[:2], dtype=torch.int32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.int32, device=device),
    )


class Merger:
    """Merges partials of one call, possibly in several rounds, into count, mean, M2 and active per language.

    ``moments``: count (languages,) int64, mean and M2 (languages, neurons) float64, active int64; zeros before the
    first round. Counts are kept once a column strip (all equal) so that rounds need no ordering between programs.
    """

    _BLOCK_N = 64
    _BLOCK_P = 32

    def __init__(self, languages: int, neurons: int, device: torch.device) -> None:
        self._strips = max(1, triton.cdiv(neurons, self._BLOCK_N))
        self._neurons = neurons
        self._counts = torch.empty((self._strips, languages), dtype=torch.int64, device=device)
        self._mean = torch.empty((languages, neurons), dtype=torch.float64, device=device)
        self._m2 = torch.empty((languages, neurons), dtype=torch.float64, device=device)
        self._active = torch.empty((languages, neurons), dtype=torch.int64, device=device)
        self._rounds = 0

    def add(self, partials: Partials, parts: int) -> None:
        """Merge the first ``parts`` parts; rounds merge in the order of the calls."""
        count, mean, m2, active = partials
        languages = count.shape[1]
        with launch.on(count.device):
            merge_partials_kernel[(self._strips * languages,)](
                count, mean, m2, active, self._counts, self._mean, self._m2, self._active,
                parts, languages, self._neurons,
                CONTINUE=self._rounds > 0, BLOCK_P=self._BLOCK_P, BLOCK_N=self._BLOCK_N, num_warps=4,
            )  # fmt: skip
        self._rounds += 1

    def moments(self) -> Moments:
        """The merged moments; zeros where nothing was merged."""
        if self._rounds == 0:
            for tensor in (self._counts, self._mean, self._m2, self._active):
                tensor.zero_()
        return self._counts[0], self._mean, self._m2, self._active
