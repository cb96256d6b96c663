"""The gradients of one step, micro-batch by micro-batch, and what to do where memory is not enough for one.

The loss is summed over the supervised tokens of a step and divided by their number once, so smaller micro-batches give
the same step, to rounding.
"""

import logging
import resource
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from slamkern import distributed
from slamkern.data.buckets import in_bucket
from slamkern.data.packing import Example, PackedBatch, collate
from slamkern.errors import SlamkernError
from slamkern.modules.cuda_graphs import Graphs
from slamkern.training.batches import sum_loss
from slamkern.training.config import TrainConfig
from slamkern.training.loss import Head, packed_loss
from slamkern.training.optimizer import MasterAdamW

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class Accumulator:
    """Computes steps; with ``on_oom="halve"`` it remembers how many tokens fit into a micro-batch."""

    def __init__(
        self, model: "PreTrainedModel", head: Head | None, optimizer: MasterAdamW, config: TrainConfig
    ) -> None:
        self.model, self.head, self.optimizer, self.config = model, head, optimizer, config
        self.limit: int | None = None
        self._graphs: Graphs | None = None
        if config.cuda_graphs:
            # Graphs read and write these.
            self._supervised, self._total = torch.zeros((2,), device=model.device).unbind()
            self._graphs = Graphs(self._micro_batch, model.device, before_capture=optimizer.keep_gradients)

    def close(self) -> None:
        """Free graphs and gradients."""
        self._graphs = None
        self.optimizer.drop_gradients()

    def backward(self, batches: Sequence[list[Example]], supervised: int) -> Tensor:
        """Forward and backward of these micro-batches; returns their summed loss divided by ``supervised``, the
        supervised tokens of the whole step, on the device.

        SlamkernError, saying what to lower, where memory is not enough.
        """
        while True:
            parts = [part for batch in batches for part in cut(batch, self.limit, padded=not self.config.packing)]
            try:
                return self._backward(parts, supervised)
            except (MemoryError, RuntimeError) as error:
                if distributed.is_lost(error):  # sharded weights are gathered on the way
                    raise distributed.lost(error) from error
                if not out_of_memory(error):
                    raise
            # Outside of the except block: its traceback would hold on to the activations.
            self.optimizer.clear_gradients()
            self._lower(parts)

    def _backward(self, parts: Sequence[list[Example]], supervised: int) -> Tensor:
        if self._graphs is not None:
            self._supervised.fill_(supervised)
            self._total.zero_()
            for part in parts:
                self._graphs(in_bucket(collate(part)))
            return self._total
        total = torch.zeros((), device=self.model.device)
        for part in parts:
            loss = sum_loss(self.model, self.head, part, self.config.packing) / supervised
            loss.backward()
            self.optimizer.collect_gradients()
            total += loss.detach()
        return total

    def _micro_batch(self, batch: PackedBatch) -> None:
        loss = packed_loss(self.model, batch, head=self.head) / self._supervised
        loss.backward()
        self.optimizer.collect_gradients()
        self._total += loss.detach()

    def _lower(self, parts: Sequence[list[Example]]) -> None:
        largest = max(sum(len(example.input_ids) for example in part) for part in parts)
        longest = max(len(example.input_ids) for part in parts for example in part)
        if self.config.on_oom == "stop":
            raise SlamkernError(
                f"out of memory with micro-batches of {largest} tokens; lower tokens_per_batch (now"
                f" {self.config.tokens_per_batch}) with more gradient_accumulation_steps, give a memory_budget, or go"
                " on with on_oom halve (--on-oom halve)"
            )
        if largest <= longest:
            raise SlamkernError(
                f"out of memory with single sequences of {longest} tokens; lower max_length (now"
                f" {self.config.max_length}), give a memory_budget, or train fewer layers"
            )
        self.limit = max(longest, largest // 2)
        for device in cuda_devices(self.model):
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
        log.warning("out of memory: going on with micro-batches of at most %d tokens, not %d", self.limit, largest)


def cut(batch: list[Example], limit: int | None, *, padded: bool) -> list[list[Example]]:
    """``batch`` in parts of at most ``limit`` positions, in order; a longer example is a part of its own."""
    if limit is None:
        return [batch]
    parts: list[list[Example]] = [[]]
    for example in batch:
        lengths = [len(other.input_ids) for other in (*parts[-1], example)]
        positions = len(lengths) * max(lengths) if padded else sum(lengths)
        if parts[-1] and positions > limit:
            parts.append([])
        parts[-1].append(example)
    return parts


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was not enough; torch has no class of its own for a CPU's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """The CUDA devices that a model lives on."""
    return sorted({p.device for p in model.parameters() if p.is_cuda}, key=lambda device: device.index)


def reset_peak_memory(model: "PreTrainedModel") -> None:
    """Begin to measure anew for :func:`peak_memory`, on GPUs."""
    for device in cuda_devices(model):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(model: "PreTrainedModel") -> int:
    """Bytes allocated at most on the model's GPUs since the reset; on the CPU, the process's own peak."""
    devices = cuda_devices(model)
    if devices:
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
