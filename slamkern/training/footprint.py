"""Bytes of a training step as arithmetic, and the cheapest way to make them fit a budget.

    peak = weights + state + the larger of   saved + workspace                      (the forward is done)
                                             saved below + gradients + workspace    (the backward has come down)

``weights``: parameters and buffers as they are, or their FP8 copies. ``state``: float32 masters and AdamW moments of
what is trained, and the sum of its gradients where a step has several micro-batches (optimizer.py); offloaded, all of
it lies in host memory. ``saved``: what autograd keeps for the backward, in all layers or in those up to the highest
trained one. ``workspace``: the larger of a chunk of logits and the intermediates of one FFN's backward.

Where the numbers come from: measured on a model (memory_budget.py) or computed from a shape (shape_memory.py). Counted
is what torch allocates for tensors. A CUDA context (about half a GB) and what an allocator cannot reuse come on top:
give a budget below the device's memory.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from slamkern.errors import SlamkernError

LOGITS_CHUNK = 1024  # rows, the default of loss.py


@dataclass(frozen=True)
class MemoryPlan:
    """recompute: layers whose FFN computes gate and up again; offload: whether the optimizer lies in host memory."""

    recompute: frozenset[int]
    offload: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step of one model: fixed ones, and those per position of a micro-batch."""

    weights: int
    state: int
    gradients: int
    offloaded_gradients: int  # the same where the state is in host memory
    saved: Mapping[int, float]  # layer -> per position, with nothing recomputed; -1: outside of the layers
    recomputable: Mapping[int, float]  # layer -> per position, how much of it recomputing gate and up saves
    highest: int  # trained layer
    ffn: float  # per position: the backward of one FFN
    recomputing: float  # per position: gate and up of the one layer that is recomputed at the moment
    logits: float  # per supervised row in flight, at most LOGITS_CHUNK of them
    products: int = 0  # of one product with a weight in FP8

    def saved_bytes(self, positions: int, recompute: Collection[int] = (), *, up_to: int | None = None) -> int:
        """What autograd keeps of a micro-batch, all of it or in the layers up to one."""
        layers = [layer for layer in self.saved if up_to is None or layer <= up_to]
        less = sum(self.recomputable[layer] for layer in recompute if layer in layers)
        return round((sum(self.saved[layer] for layer in layers) - less) * positions)

    def workspace_bytes(
        self, positions: int, recompute: Collection[int] = (), *, supervised: int | None = None
    ) -> tuple[int, int]:
        """Of the backward of one FFN, and of a chunk of logits. supervised: positions with a label; None: all."""
        rows = min(positions if supervised is None else supervised, LOGITS_CHUNK)
        ffn = (self.ffn + (self.recomputing if recompute else 0)) * positions + self.products
        return round(ffn), round(self.logits * rows)

    def total(
        self,
        positions: int,
        recompute: Collection[int] = (),
        *,
        offload: bool = False,
        supervised: int | None = None,
    ) -> int:
        """Bytes at the peak of a step whose micro-batches have so many positions, ``supervised`` (None: all) of them
        with a label."""
        ffn, logits = self.workspace_bytes(positions, recompute, supervised=supervised)
        forward = self.saved_bytes(positions, recompute) + max(ffn, logits)
        gradients = self.offloaded_gradients if offload else self.gradients
        backward = self.saved_bytes(positions, recompute, up_to=self.highest) + ffn + gradients
        return round(self.weights + (0 if offload else self.state) + max(forward, backward))

    def plan(self, positions: int, budget: int, *, offload: bool | None = False) -> MemoryPlan:
        """What makes a step take at most ``budget`` bytes, the least slowdown first: as few layers that recompute as
        will do, and only where all of them do not, the optimizer in host memory (None: where needed) and again as few.

        Layers that save most come first, deeper ones first among equals, so the set of a smaller budget contains that
        of a larger one. Raises SlamkernError, naming the bytes, where nothing is enough.
        """
        order = sorted(self.recomputable, key=lambda layer: (self.recomputable[layer], layer), reverse=True)
        for offloaded in (False, True) if offload is None else (offload,):
            for count in range(len(order) + 1):
                if self.total(positions, order[:count], offload=offloaded) <= budget:
                    return MemoryPlan(frozenset(order[:count]), offloaded)
        last = offload is None or offload
        minimum = min(self.total(positions, chosen, offload=last) for chosen in ((), order))
        fixed = self.weights + (self.offloaded_gradients if last else self.state + self.gradients)
        fitting = self._most_positions(budget, order, last)
        way_out = (
            f"micro-batches of {fitting} tokens would fit (tokens_per_batch, with more gradient_accumulation_steps)"
            if fitting
            else f"weights and the state of what is trained alone are {gigabytes(fixed)};"
            f" train fewer layers or use a smaller dtype"
        )
        raise SlamkernError(
            f"a step of {positions} tokens needs {gigabytes(minimum)} even with every FFN recomputed"
            f"{' and the optimizer in host memory' if last else ''},"
            f" more than the memory budget of {gigabytes(budget)}; {way_out}"
        )

    def describe(self, positions: int, plan: MemoryPlan) -> str:
        """What a plan does and the bytes it takes, in words."""
        total = gigabytes(self.total(positions, plan.recompute, offload=plan.offload))
        recomputed = f"gate and up recomputed in {len(plan.recompute)} of {len(self.recomputable)} layers"
        where = "host memory" if plan.offload else "the device's memory"
        return f"{total} expected, {recomputed}, optimizer in {where}"

    def _most_positions(self, budget: int, recompute: Collection[int], offload: bool) -> int:
        """The largest micro-batch that fits, or 0."""
        low, high = 0, max(1, budget)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.total(middle, recompute, offload=offload) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def gigabytes(count: float) -> str:
    """A number of bytes as text, in units of 10^9."""
    return f"{count / 1e9:.3g} GB"


def state_bytes(numel: int, itemsize: int, accumulation: int) -> int:
    """Two moments, a master where the parameter is half precision, and the gradient's sum over micro-batches."""
    return (2 + (itemsize < 4) + (accumulation > 1)) * max(4, itemsize) * numel


def gradient_bytes(numel: int, itemsize: int, accumulation: int) -> int:
    """A new gradient beside what :func:`state_bytes` counts: one sum of micro-batches, or what is added to it."""
    added = itemsize if itemsize < 4 else 0
    return numel * (added if accumulation > 1 else max(4, itemsize))


def workspace_coefficients(hidden: int, neurons: int, vocabulary: int, itemsize: int) -> dict[str, float]:
    """``ffn``, ``recomputing`` and ``logits`` of a Footprint, from the sizes of a model."""
    return {
        # dh, dgate, dup, h; dy, dx, its sum, the residual's
        "ffn": (4 * neurons + 4 * hidden) * itemsize,
        "recomputing": 2 * neurons * itemsize,
        # float32 logits, their gradient, that scaled, and that in half precision where the head is
        "logits": vocabulary * (12 + (itemsize if itemsize < 4 else 0)),
    }
