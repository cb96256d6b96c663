"""Which FFNs compute gate and up again in the backward so that a step fits a memory budget: as few as will do.

    peak = weights + state + the larger of   saved + workspace                      (the forward is done)
                                             saved below + gradients + workspace    (the backward has come down)

``weights``: parameters and buffers as they are, or their FP8 copies. ``state``: float32 masters and AdamW moments of
what is trained, and the sum of its gradients where a step has several micro-batches (optimizer.py). ``saved``: what
autograd keeps for the backward, in all layers or in those up to the highest trained one. It is measured on short
forwards of the model itself, so it holds for every architecture and choice of trained tensors, and is linear in the
positions of a micro-batch. ``workspace``: the larger of a chunk of logits and the intermediates of one FFN's backward;
computed.

Counted is what torch allocates for tensors. A CUDA context (about half a GB) and what an allocator cannot reuse come on
top: give a budget below the device's memory.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slamkern.data.packing import Example, collate
from slamkern.errors import SlamkernError
from slamkern.modules.ffn import FFN
from slamkern.modules.fp8_linear import resident_tensors, workspace
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import fused_ffns
from slamkern.selection.trainable import trainable_tensors, trained_parameters
from slamkern.training.loss import Head, packed_loss, read_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_LOGITS_CHUNK = 1024  # rows, the default of loss.py
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """``"24GB"`` (10^9 bytes each), ``"22.5 GiB"`` (2^30), ``"800MB"`` as a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", text.upper())
    if match is None or float(match[1]) <= 0:
        raise SlamkernError(f"{text!r} is no amount of memory; write it like 24GB (10^9 bytes) or 22.5GiB (2^30)")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step of one model: fixed ones, and those per position of a micro-batch."""

    weights: int
    state: int
    gradients: int
    saved: Mapping[int, float]  # layer -> per position, with nothing recomputed; -1: outside of the layers
    recomputable: Mapping[int, float]  # layer -> per position, how much of it recomputing gate and up saves
    highest: int  # trained layer
    ffn: float  # per position: the backward of one FFN
    recomputing: float  # per position: gate and up of the one layer that is recomputed at the moment
    logits: float  # per supervised row in flight, at most _LOGITS_CHUNK of them
    products: int = 0  # of one product with a weight in FP8

    def saved_bytes(self, positions: int, recompute: Collection[int] = (), *, up_to: int | None = None) -> int:
        """What autograd keeps of a micro-batch, all of it or in the layers up to one."""
        layers = [layer for layer in self.saved if up_to is None or layer <= up_to]
        less = sum(self.recomputable[layer] for layer in recompute if layer in layers)
        return round((sum(self.saved[layer] for layer in layers) - less) * positions)

    def total(self, positions: int, recompute: Collection[int] = ()) -> int:
        """Bytes at the peak of a step whose micro-batches have so many positions."""
        ffn = (self.ffn + (self.recomputing if recompute else 0)) * positions + self.products
        logits = self.logits * min(positions, _LOGITS_CHUNK)
        forward = self.saved_bytes(positions, recompute) + max(ffn, logits)
        backward = self.saved_bytes(positions, recompute, up_to=self.highest) + ffn + self.gradients
        return round(self.weights + self.state + max(forward, backward))

    def plan(self, positions: int, budget: int) -> frozenset[int]:
        """The smallest set of layers that must recompute for a step to take at most ``budget`` bytes.

        Layers that save most come first, deeper ones first among equals, so the set of a smaller budget contains that
        of a larger one. Raises SlamkernError, naming the bytes, where recomputing all of them is not enough.
        """
        order = sorted(self.recomputable, key=lambda layer: (self.recomputable[layer], layer), reverse=True)
        for count in range(len(order) + 1):
            if self.total(positions, order[:count]) <= budget:
                return frozenset(order[:count])
        least = min(self.total(positions), self.total(positions, order))
        fixed = self.weights + self.state + self.gradients
        fitting = self._most_positions(budget, order)
        way_out = (
            f"micro-batches of {fitting} tokens would fit (tokens_per_batch, with more gradient_accumulation_steps)"
            if fitting
            else f"weights and the state of what is trained alone are {_gb(fixed)};"
            f" train fewer layers or use a smaller dtype"
        )
        raise SlamkernError(
            f"a step of {positions} tokens needs {_gb(least)} even with every FFN recomputed,"
            f" more than the memory budget of {_gb(budget)}; {way_out}"
        )

    def _most_positions(self, budget: int, recompute: Collection[int]) -> int:
        """The largest micro-batch that fits, or 0."""
        low, high = 0, max(1, budget)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.total(middle, recompute) <= budget else (low, middle - 1)
        return low


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def footprint(
    model: "PreTrainedModel", *, length: int = 64, accumulation: int = 1, head: Head | str | None = "check"
) -> Footprint:
    """Measure a patched model, frozen as it will be trained; runs three forwards of one or two sequences.

    length: tokens of each probe sequence. Attention that keeps its scores (only without a fused kernel) costs more the
    longer a sequence is, so give the longest one. head: what ``read_head`` returned; by default it is read here.
    Random state and modes of recomputation are as before afterwards.
    """
    from slamkern.training.step_cost import storage_bytes  # brings triton along through torch's FLOP counter

    ffns = fused_ffns(model)
    if not ffns:
        raise SlamkernError("a memory budget is kept by recomputing fused FFNs; call patch_model(model) first")
    head = read_head(model) if isinstance(head, str) else head
    before = [ffn.recompute for ffn in ffns]
    try:
        once, twice = (_measure(model, ffns, count, length, head, recompute=False) for count in (1, 2))
        inputs = _measure(model, ffns, 2, length, head, recompute=True)
    finally:
        for ffn, recompute in zip(ffns, before, strict=True):
            ffn.recompute = recompute
    itemsize = next(model.parameters()).element_size()
    hidden, neurons = model.config.hidden_size * itemsize, max(ffn.neurons for ffn in ffns) * itemsize
    vocabulary = model.get_output_embeddings().weight.shape[0]
    trained = trained_parameters(model)
    in_ffns = {entry.name: entry.layer for entry in trainable_tensors(model)}
    products, per_row = workspace(model)
    savings = {layer: (twice[layer] - inputs[layer]) / (2 * length) for layer in inputs}
    return Footprint(
        weights=storage_bytes(resident_tensors(model)),
        state=sum(_state(parameter, accumulation) for parameter in trained.values()),
        gradients=sum(_gradient(parameter, accumulation) for parameter in trained.values()),
        saved={layer: (twice[layer] - once[layer]) / length for layer in twice},
        recomputable={layer: saving for layer, saving in savings.items() if saving > 0},
        highest=max(in_ffns.values()) if in_ffns.keys() == trained.keys() else max(inputs),
        ffn=4 * neurons + 4 * hidden + per_row,  # dh, dgate, dup, h; dy, dx, its sum, the residual's
        recomputing=2 * neurons,
        # float32 logits, their gradient, that scaled, and that in half precision where the head is
        logits=vocabulary * (12 + (itemsize if itemsize < 4 else 0)),
        products=products,
    )


def _state(parameter: Tensor, accumulation: int) -> int:
    """Two moments, a master where the parameter is half precision, and the gradient's sum over micro-batches."""
    wide = max(4, parameter.element_size())
    copies = 2 + (parameter.element_size() < 4) + (accumulation > 1)
    return copies * wide * parameter.numel()


def _gradient(parameter: Tensor, accumulation: int) -> int:
    """A new gradient beside what :func:`_state` counts: one sum of micro-batches, or what is added to it."""
    added = parameter.element_size() if parameter.element_size() < 4 else 0
    return parameter.numel() * (added if accumulation > 1 else max(4, parameter.element_size()))


def _measure(
    model: "PreTrainedModel", ffns: list[FFN], sequences: int, length: int, head: Head | None, *, recompute: bool
) -> dict[int, int]:
    """Bytes that a forward saves for its backward, by layer; -1: outside of the layers."""
    from slamkern.training.step_cost import SavedBytes

    for ffn in ffns:
        ffn.recompute = recompute
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = tuple(index % vocabulary for index in range(length))
    batch = collate([Example(ids, ids)] * sequences).to(model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), packed_attention(model), SavedBytes(model) as saved:
        packed_loss(model, batch, head=head)
    layers = {ffn.layer: saved.of(_layer_path(ffn)) for ffn in ffns}
    return layers | {-1: sum(saved.by_module.values()) - sum(layers.values())}


def _layer_path(ffn: FFN) -> str:
    parts = ffn.path.split(".")
    return ".".join(parts[: parts.index(str(ffn.layer)) + 1])


@contextmanager
def recomputing(
    model: "PreTrainedModel",
    tokens_per_batch: int,
    budget_bytes: int,
    *,
    length: int,
    accumulation: int,
    head: Head | None,
) -> Iterator[frozenset[int]]:
    """Within the block the planned layers recompute and no others; the plan is logged."""
    measured = footprint(model, length=length, accumulation=accumulation, head=head)
    chosen = measured.plan(tokens_per_batch, budget_bytes)
    log.info(
        "memory: %s of %s expected, gate and up recomputed in %d of %d layers",
        _gb(measured.total(tokens_per_batch, chosen)),
        _gb(budget_bytes),
        len(chosen),
        len(measured.recomputable),
    )
    ffns = fused_ffns(model)
    before = [ffn.recompute for ffn in ffns]
    for ffn in ffns:
        ffn.recompute = ffn.layer in chosen
    try:
        yield chosen
    finally:
        for ffn, recompute in zip(ffns, before, strict=True):
            ffn.recompute = recompute
