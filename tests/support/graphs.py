"""CUDA graphs without a GPU: what would be captured is noted, and called again where it would be replayed."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slamkern.modules import cuda_graphs, varlen_attention
from slamkern.modules.cuda_graphs import NoSync
from slamkern.modules.packed_attention import packed_attention
from slamkern.training.loss import packed_loss, read_head


class Recorded:
    """In the place of ``CudaCapture``; ``all`` has one for each device that was asked for."""

    all: ClassVar[list["Recorded"]] = []

    def __init__(self, device: torch.device) -> None:
        self.captured = 0
        self.replayed = 0
        self.all.append(self)

    def warm_up(self) -> Any:
        return nullcontext()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def recorded_graphs(monkeypatch):
    """A CPU passes for a GPU that captures; the list of what was captured."""
    Recorded.all = []
    monkeypatch.setattr(cuda_graphs, "CudaCapture", Recorded)
    for module in ("slamkern.training.checks", "slamkern.probe.collect"):
        monkeypatch.setattr(f"{module}.check_capturable", lambda devices: None)
    return Recorded.all


class Launches(TorchDispatchMode):
    """Notes every op with the shapes and dtypes of what it is given and gives, which is what it allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.noted.append((str(func), repr(torch.utils._pytree.tree_map(_shape, (args, kwargs, result)))))
        return result


def _shape(value: Any) -> Any:
    return (tuple(value.shape), value.dtype, value.device.type) if isinstance(value, torch.Tensor) else value


def shapes_alone(monkeypatch):
    """What the device ``meta`` lacks, which has shapes and tells no values: FlashAttention, autocast."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, *_, **__: query * 1.0)
    monkeypatch.setattr(varlen_attention, "_flash_applies", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def launches_of_training(model, batches, monkeypatch):
    """Ops of forward and backward of each batch, on ``meta`` in bfloat16; SlamkernError for one that waits.

    The first backward makes gradients, the others add to them.
    """
    with packed_attention(model), monkeypatch.context() as patches:
        head = read_head(model)
        shapes_alone(patches)
        model.to("meta", torch.bfloat16)
        if head is not None:
            moved = {
                name: value.to("meta", torch.bfloat16)
                for name, value in vars(head).items()
                if name in ("weight", "bias") and value is not None
            }
            head = replace(head, **moved)
        noted = []
        for batch in batches:
            there = batch.to("meta")
            with Launches() as launches, NoSync():
                packed_loss(model, there, head=head).backward()
            noted.append(launches.noted)
    return noted
