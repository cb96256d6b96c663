"""Keeping a training step of a model within a memory budget: measured, planned (footprint.py), and done.

What autograd keeps is measured on short forwards of the model itself, so it holds for every architecture and choice of
trained tensors, and is linear in the positions of a micro-batch.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from slamkern.data.packing import Example, collate
from slamkern.errors import SlamkernError
from slamkern.modules.ffn import FFN
from slamkern.modules.fp8_linear import resident_tensors, workspace
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import fused_ffns
from slamkern.selection.trainable import trainable_tensors, trained_parameters
from slamkern.training.footprint import (
    Footprint,
    MemoryPlan,
    gigabytes,
    gradient_bytes,
    state_bytes,
    workspace_coefficients,
)
from slamkern.training.loss import Head, packed_loss, read_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """``"24GB"`` (10^9 bytes each), ``"22.5 GiB"`` (2^30), ``"800MB"`` as a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", text.upper())
    if match is None or float(match[1]) <= 0:
        raise SlamkernError(f"{text!r} is no amount of memory; write it like 24GB (10^9 bytes) or 22.5GiB (2^30)")
    return int(float(match[1]) * _UNITS[match[2]])


def offload_choice(asked: bool, on_host: bool) -> bool | None:
    """Whether the optimizer is offloaded; None: where needed. That of a model on the host has nowhere else to go."""
    return True if asked else False if on_host else None


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
    vocabulary = model.get_output_embeddings().weight.shape[0]
    spaces = workspace_coefficients(model.config.hidden_size, max(ffn.neurons for ffn in ffns), vocabulary, itemsize)
    trained = trained_parameters(model)
    sizes = [(parameter.numel(), parameter.element_size()) for parameter in trained.values()]
    in_ffns = {entry.name: entry.layer for entry in trainable_tensors(model)}
    products, per_row = workspace(model)
    savings = {layer: (twice[layer] - inputs[layer]) / (2 * length) for layer in inputs}
    return Footprint(
        weights=storage_bytes(resident_tensors(model)),
        state=sum(state_bytes(*size, accumulation) for size in sizes),
        gradients=sum(gradient_bytes(*size, accumulation) for size in sizes),
        offloaded_gradients=sum(numel * size for numel, size in sizes),  # until they are copied, after the backward,
        saved={layer: (twice[layer] - once[layer]) / length for layer in twice},
        recomputable={layer: saving for layer, saving in savings.items() if saving > 0},
        highest=max(in_ffns.values()) if in_ffns.keys() == trained.keys() else max(inputs),
        ffn=spaces["ffn"] + per_row,
        recomputing=spaces["recomputing"],
        logits=spaces["logits"],
        products=products,
    )


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
def within_budget(
    model: "PreTrainedModel",
    tokens_per_batch: int,
    budget_bytes: int,
    *,
    length: int,
    accumulation: int,
    head: Head | None,
    offload: bool,
) -> Iterator[MemoryPlan]:
    """Within the block the planned layers recompute and no others; the plan, which is logged, says whether the
    optimizer has to be in host memory. offload: it is there anyway.
    """
    measured = footprint(model, length=length, accumulation=accumulation, head=head)
    choice = offload_choice(offload, model.device.type == "cpu")
    plan = measured.plan(tokens_per_batch, budget_bytes, offload=choice)
    log.info("memory within %s: %s", gigabytes(budget_bytes), measured.describe(tokens_per_batch, plan))
    ffns = fused_ffns(model)
    before = [ffn.recompute for ffn in ffns]
    for ffn in ffns:
        ffn.recompute = ffn.layer in plan.recompute
    try:
        yield plan
    finally:
        for ffn, recompute in zip(ffns, before, strict=True):
            ffn.recompute = recompute
