"""``swiglu`` and, in the same pass over memory, the moments of the observed tensor per language and neuron.

    hidden = act(gate) * up        observed = act(gate) ("gate") or hidden ("hidden"), float32, before rounding

gate, up, hidden: (tokens, neurons); language_ids: (tokens,) int32, ids outside 0..L-1 are left out of the statistics.
A program walks down a chunk of rows in one column strip with the moments of its current language in registers. Where a
tile has one language (tokens grouped by language, as the packer lays them) that costs one merge a tile; where it has
several, one a language present in the tile; the number of languages that exist costs nothing. When the language
changes, the old moments go to the program's own slot in memory and those of the new one come back from theirs. The
chunks are merged by merge_moments.py: two launches, no sorting, no atomics, bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slamkern.kernels import launch
from slamkern.kernels.activations import activate
from slamkern.kernels.glu import ACTIVATIONS
from slamkern.kernels.merge_moments import Merger, empty_partials, merge, tile_mean, tile_moments

OBSERVABLES = ("gate", "hidden")
_BLOCK_T = 4  # 4 loads of 16 bytes in flight a thread and matrix; 8 rows spill or take all 255 registers


@triton.jit(do_not_specialize=["tokens", "languages", "chunk_rows"])
def swiglu_stats_kernel(
    gate_ptr, up_ptr, hidden_ptr, language_ptr, count_ptr, mean_ptr, m2_ptr, active_ptr,
    tokens, neurons, languages, chunk_rows, gate_stride, up_stride, hidden_stride,
    ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr, LANGUAGES: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns one chunk of rows of one strip of columns, and the (chunk, language) slots of those columns.
    strips = tl.cdiv(neurons, BLOCK_N)
    chunk = (tl.program_id(0) // strips).to(tl.int64)
    strip = tl.program_id(0) % strips
    columns = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    in_row = columns < neurons

    # LANGUAGES >= languages is a power of two: the counts of all slots live in one register vector.
    slots = tl.arange(0, LANGUAGES)
    counts = tl.zeros((LANGUAGES,), tl.int32)
    current = tl.full((), -1, tl.int32)
    count = tl.full((), 0, tl.int32)
    # The mean is `pivot + mean`, pivot being what the mean was when the language came up: differences stay exact.
    pivot = tl.zeros((BLOCK_N,), tl.float32)
    mean = tl.zeros((BLOCK_N,), tl.float32)
    m2 = tl.zeros((BLOCK_N,), tl.float32)
    active = tl.zeros((BLOCK_N,), tl.int32)

    for offset in range(0, chunk_rows, BLOCK_T):
        rows = chunk * chunk_rows + offset + tl.arange(0, BLOCK_T)
        in_column = rows < tokens
        inside = in_column[:, None] & in_row[None, :]
        gate = tl.load(gate_ptr + rows[:, None] * gate_stride + columns[None, :], inside, other=0.0)
        observed = activate(gate.to(tl.float32), ACTIVATION)
        if up_ptr is not None:
            up = tl.load(up_ptr + rows[:, None] * up_stride + columns[None, :], inside, other=0.0)
            hidden = observed * up.to(tl.float32)
        else:
            hidden = observed
        if hidden_ptr is not None:
            to = hidden_ptr + rows[:, None] * hidden_stride + columns[None, :]
            tl.store(to, hidden.to(hidden_ptr.dtype.element_ty), inside)
        if OBSERVE == "hidden":
            observed = hidden

        language = tl.load(language_ptr + rows, in_column, other=-1)
        # `languages` stands for "none": ids that do not count, and later those already done.
        language = tl.where((language >= 0) & (language < languages), language, languages)
        present = tl.min(language, axis=0)
        while present < languages:
            member = language == present
            if present != current:
                slot = (chunk * languages + current) * neurons + columns
                spill = in_row & (current >= 0)
                tl.store(mean_ptr + slot, pivot + mean, spill)
                tl.store(m2_ptr + slot, m2, spill)
                tl.store(active_ptr + slot, active, spill)
                counts = tl.where(slots == current, count, counts)
                count = tl.sum(tl.where(slots == present, counts, 0), axis=0)
                slot = (chunk * languages + present) * neurons + columns
                back = in_row & (count > 0)
                # What one thread stores another may load back: all stores before all loads, and before later stores.
                tl.debug_barrier()
                pivot = tl.where(count > 0, tl.load(mean_ptr + slot, back, other=0.0), tile_mean(observed, member))
                mean = tl.zeros((BLOCK_N,), tl.float32)
                m2 = tl.load(m2_ptr + slot, back, other=0.0)
                active = tl.load(active_ptr + slot, back, other=0)
                tl.debug_barrier()
                current = present
            added, added_mean, added_m2, added_active = tile_moments(observed, member, pivot)
            mean, m2 = merge(count.to(tl.float32), mean, m2, added.to(tl.float32), added_mean, added_m2)
            active += added_active
            count += added
            language = tl.where(member, languages, language)
            present = tl.min(language, axis=0)

    slot = (chunk * languages + current) * neurons + columns
    spill = in_row & (current >= 0)
    tl.store(mean_ptr + slot, pivot + mean, spill)
    tl.store(m2_ptr + slot, m2, spill)
    tl.store(active_ptr + slot, active, spill)
    counts = tl.where(slots == current, count, counts)
    # Every strip counts the same tokens: the first one reports.
    tl.store(count_ptr + chunk * languages + slots, counts, (slots < languages) & (strip == 0))


def swiglu_stats(
    gate: Tensor, up: Tensor | None, language_ids: Tensor, num_languages: int, activation: str, observe: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``hidden`` (tokens, neurons), count (L,) int64, mean and m2 (L, neurons) float64, active (L, neurons) int64.

    Needs up to 12 bytes a chunk, language and neuron for partials (see ``launch.chunks``), touched only where used.
    """
    hidden = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    return hidden, *_launch(gate, up, hidden, language_ids, num_languages, activation, observe)


def _launch(
    gate: Tensor, up: Tensor | None, hidden: Tensor | None, language_ids: Tensor, languages: int,
    activation: str, observe: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    launch.check_rows("gate", gate)
    if up is not None:
        launch.check_like("up", up, gate)
    launch.check_languages(language_ids, languages, gate)
    launch.check_choice("activation", activation, ACTIVATIONS)
    launch.check_choice("observable", observe, OBSERVABLES)
    if hidden is None and observe == "gate":
        up = None
    tokens, neurons = gate.shape
    merger = Merger(languages, neurons, gate.device)
    if tokens == 0:
        return merger.moments()
    tile = launch.strip(neurons, gate.element_size(), _BLOCK_T, max_warps=2)
    strips = max(1, triton.cdiv(neurons, tile.block_n))
    chunks = launch.chunks(tokens, strips, tile.block_t, launch.processors(gate.device))
    partials = empty_partials(chunks.count, languages, neurons, gate.device)
    with launch.on(gate.device):
        swiglu_stats_kernel[(chunks.count * strips,)](
            gate, up, hidden, language_ids.contiguous(), *partials,
            tokens, neurons, languages, chunks.rows,
            gate.stride(0), 0 if up is None else up.stride(0), 0 if hidden is None else hidden.stride(0),
            ACTIVATION=activation, OBSERVE=observe, LANGUAGES=max(16, triton.next_power_of_2(languages)),
            BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
        )  # fmt: skip
    merger.add(partials, chunks.count)
    return merger.moments()
