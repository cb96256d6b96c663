"""``swiglu`` and, in the same launch, the moments of the observed tensor merged into those of earlier calls.

    hidden = act(gate) * up        observed = act(gate) ("gate") or hidden ("hidden"), float32, before rounding

gate, up, hidden: (tokens, neurons); language_ids: (tokens,) int32, ids outside 0..L-1 are left out of the statistics.
The moments of a language are (count, mean, M2 = sum of squared deviations from the mean, active = how often > 0).

A program walks down one part of the rows (row_plan.py: one language) in one strip of columns and sums ``x - pivot`` and
its square, the pivot of a column being its mean over the part's first rows. Then ``M2 = s2 - s1^2 / n``; as the pivot
is the mean of k of the n values, ``s1^2 / n`` is never more than ``n / k - 1`` times M2 (15, with k = 32 of at most
512): little can cancel, however far from zero the values lie. Parts merge by the pairwise formula of Chan, Golub and
LeVeque (1979) in float64:

    mean = mean_a + (mean_b - mean_a) * n_b / n        M2 = M2_a + M2_b + (mean_b - mean_a)^2 * n_a * n_b / n

A language of one part merges at once. Otherwise parts wait in memory, and the program that arrives last merges them all
in their order: which one that is changes nothing, so results are bitwise the same from run to run. One launch, no float
atomics, no cost for languages that are not there.
"""

import triton
import triton.language as tl
from torch import Tensor

from slamkern.kernels import ACTIVATIONS, OBSERVABLES, launch
from slamkern.kernels.activations import activate
from slamkern.kernels.row_plan import COLUMNS, plan_rows

BLOCK_T = launch.STATS_ROWS
_PIVOT_ROWS = tl.constexpr(32)  # the rows of a part over which its pivot follows the mean


@triton.jit
def _observe(
    gate_ptr, up_ptr, hidden_ptr, row, gate_stride, up_stride, hidden_stride, inside,
    ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr,
):  # fmt: skip
    # Writes hidden of a tile of rows and returns what is observed of it.
    row = row.to(tl.int64)[:, None]
    gate = tl.load(gate_ptr + row * gate_stride, inside, other=0.0)
    observed = activate(gate.to(tl.float32), ACTIVATION, gate.dtype == tl.float32)
    hidden = observed
    if up_ptr is not None:
        hidden = observed * tl.load(up_ptr + row * up_stride, inside, other=0.0).to(tl.float32)
    tl.store(hidden_ptr + row * hidden_stride, hidden.to(hidden_ptr.dtype.element_ty), inside)
    if OBSERVE == "hidden":
        observed = hidden
    return observed


@triton.jit
def _merge(count, mean, m2, added, added_mean, added_m2):
    # Chan's formula; counts int64, added > 0.
    total = count + added
    share = added.to(tl.float64) / total.to(tl.float64)
    delta = added_mean.to(tl.float64) - mean
    return total, mean + delta * share, m2 + added_m2.to(tl.float64) + delta * delta * (share * count.to(tl.float64))


@triton.jit(do_not_specialize=["languages", "lanes"])
def swiglu_stats_kernel(
    gate_ptr, up_ptr, hidden_ptr, order_ptr, parts_ptr, arrived_ptr, partials_ptr,
    count_ptr, mean_ptr, m2_ptr, active_ptr,
    neurons, languages, lanes, gate_stride, up_stride, hidden_stride,
    ACTIVATION: tl.constexpr, OBSERVE: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns one strip of columns of one part: rows of hidden, and a slot of the partials where it needs one.
    strips = tl.cdiv(neurons, BLOCK_N)
    part, strip = tl.program_id(0) // strips, tl.program_id(0) % strips
    part_ptr = parts_ptr + part * COLUMNS
    rows = tl.load(part_ptr + 1)
    if rows == 0:
        return
    order_ptr += tl.load(part_ptr)
    columns = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    in_row = columns < neurons
    gate_ptr += columns[None, :]
    hidden_ptr += columns[None, :]
    if up_ptr is not None:
        up_ptr += columns[None, :]

    # The first tile takes the rows that do not fill one, so that no other tile needs a mask of rows.
    tile = tl.arange(0, BLOCK_T)
    head = (rows - 1) % BLOCK_T + 1
    member = (tile < head)[:, None]
    row = tl.load(order_ptr + tile, tile < head, other=0)
    x = _observe(
        gate_ptr, up_ptr, hidden_ptr, row, gate_stride, up_stride, hidden_stride, member & in_row[None, :],
        ACTIVATION, OBSERVE,
    )  # fmt: skip
    pivot = tl.sum(tl.where(member, x, 0.0), axis=0) / head.to(tl.float32)
    deviation = tl.where(member, x - pivot[None, :], 0.0)
    s1 = tl.sum(deviation, axis=0)
    s2 = tl.sum(deviation * deviation, axis=0)
    active = tl.sum((member & (x > 0.0)).to(tl.int32), axis=0)
    row = tl.load(order_ptr + head + tile, head + tile < rows, other=0)
    for done in range(head, rows, BLOCK_T):
        # Indices one tile ahead: the loads of a tile do not wait for its row numbers.
        ahead = done + BLOCK_T + tile
        following = tl.load(order_ptr + ahead, ahead < rows, other=0)
        x = _observe(
            gate_ptr, up_ptr, hidden_ptr, row, gate_stride, up_stride, hidden_stride, in_row[None, :],
            ACTIVATION, OBSERVE,
        )  # fmt: skip
        row = following
        deviation = x - pivot[None, :]
        s1 += tl.sum(deviation, axis=0)
        s2 += tl.sum(deviation * deviation, axis=0)
        active += tl.sum((x > 0.0).to(tl.int32), axis=0)
        if done < _PIVOT_ROWS:
            n = tl.full((), done + BLOCK_T, tl.float32)
            moved = pivot + s1 * (1.0 / n)
            shift = moved - pivot
            s2 -= shift * (s1 * 2.0 - shift * n)
            s1 -= shift * n
            pivot = moved

    language = tl.load(part_ptr + 2)
    if language == languages:
        return
    n = rows.to(tl.float32)
    mean_here = pivot.to(tl.float64) + (s1 / n).to(tl.float64)
    m2_here = tl.maximum(s2 - s1 * (s1 / n), 0.0, propagate_nan=tl.PropagateNan.ALL)

    parts = tl.load(part_ptr + 5)
    slots_ptr = partials_ptr + tl.load(part_ptr + 3).to(tl.int64) * 3 * neurons + columns
    arrived_ptr += language * lanes
    last = parts == 1
    if parts > 1:
        slot_ptr = slots_ptr + tl.load(part_ptr + 4).to(tl.int64) * 3 * neurons
        tl.store(slot_ptr, mean_here.to(tl.float32), in_row)
        tl.store(slot_ptr + neurons, m2_here, in_row)
        tl.store(slot_ptr + 2 * neurons, active.to(tl.float32), in_row)
        tl.debug_barrier()  # stores of every thread before the arrival, which makes them visible to the last one
        last = tl.atomic_add(arrived_ptr + strip, 1, sem="acq_rel") == parts - 1
    if last:
        at = language.to(tl.int64) * neurons + columns
        before = tl.load(count_ptr + language)
        total = before
        mean = tl.load(mean_ptr + at, in_row, other=0.0)
        m2 = tl.load(m2_ptr + at, in_row, other=0.0)
        positives = tl.load(active_ptr + at, in_row, other=0)
        if parts == 1:
            total, mean, m2 = _merge(total, mean, m2, rows.to(tl.int64), mean_here, m2_here)
            positives += active
        else:
            tl.debug_barrier()
            part_ptr -= tl.load(part_ptr + 4) * COLUMNS
            for _ in range(parts):
                # .cg: from the second cache level, which all multiprocessors share.
                mean_there = tl.load(slots_ptr, in_row, other=0.0, cache_modifier=".cg")
                m2_there = tl.load(slots_ptr + neurons, in_row, other=0.0, cache_modifier=".cg")
                positives += tl.load(slots_ptr + 2 * neurons, in_row, other=0.0, cache_modifier=".cg").to(tl.int64)
                total, mean, m2 = _merge(total, mean, m2, tl.load(part_ptr + 1).to(tl.int64), mean_there, m2_there)
                slots_ptr += 3 * neurons
                part_ptr += COLUMNS
            tl.store(arrived_ptr + strip, 0)
        tl.store(mean_ptr + at, mean, in_row)
        tl.store(m2_ptr + at, m2, in_row)
        tl.store(active_ptr + at, positives, in_row)
        tl.debug_barrier()
        # Every strip has read the count before the last one changes it.
        if tl.atomic_add(arrived_ptr + lanes - 1, 1, sem="acq_rel") == strips - 1:
            tl.store(count_ptr + language, total)
            tl.store(arrived_ptr + lanes - 1, 0)


def swiglu_stats(
    gate: Tensor, up: Tensor | None, language_ids: Tensor, num_languages: int, activation: str, observe: str,
    into: tuple[Tensor, Tensor, Tensor, Tensor] | None = None, plan: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``hidden`` (tokens, neurons), count (L,) int64, mean and m2 (L, neurons) float64, active (L, neurons) int64.

    into: moments to merge those of this call into, in place (returned again); fresh ones by default.
    plan: :func:`plan_rows` of ``language_ids``, made once for all layers; working memory in it is overwritten.
    """
    launch.check_rows("gate", gate)
    if up is not None:
        launch.check_like("up", up, gate)
    launch.check_languages(language_ids, num_languages, gate)
    launch.check_choice("activation", activation, ACTIVATIONS)
    launch.check_choice("observable", observe, OBSERVABLES)
    tokens, neurons = gate.shape
    count, mean, m2, active = launch.zero_moments(num_languages, neurons, gate.device) if into is None else into
    hidden = launch.fresh(gate)
    if tokens > 0:
        order, parts, arrived, partials = plan or plan_rows(language_ids, num_languages, neurons)
        tile = launch.strip(neurons, gate.element_size(), BLOCK_T, max_warps=2)
        # One program even where there are no neurons: it counts the tokens.
        strips = max(1, launch.ceil_div(neurons, tile.block_n))
        with launch.on(gate.device):
            swiglu_stats_kernel[(parts.shape[0] * strips,)](
                gate, up, hidden, order, parts, arrived, partials, count, mean, m2, active,
                neurons, num_languages, arrived.shape[1],
                gate.stride(0), 0 if up is None else up.stride(0), hidden.stride(0),
                ACTIVATION=activation, OBSERVE=observe, COLUMNS=COLUMNS,
                BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
            )  # fmt: skip
    return hidden, count, mean, m2, active
