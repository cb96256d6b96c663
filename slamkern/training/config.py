"""What goes into a training run and what comes out: the recipe, checked when it is written down, and the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from slamkern.errors import SlamkernError
from slamkern.selection.trainable import trained_parameters
from slamkern.training.memory_budget import parse_bytes


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Defaults are SLAM's (lr 2e-5, cosine, 4 epochs, length 1024, no weight decay, clip 1.0).

    max_steps: exactly this many steps, over as many epochs as they take, instead of ``epochs``. clip 0: no clipping.
    save_every 0: no checkpoints before the end (Ctrl-C still writes one). packing False: padded batches, for models
    without packed attention. gradient_checkpointing: recompute activations in backward, for less memory.
    memory_budget: like "24GB"; as few FFNs as it takes for a step to fit recompute gate and up (see memory_budget.py).
    frozen_precision: "model", the dtype the model is in, or "fp8" for the frozen Linears of its layers (see fp8.py).
    """

    learning_rate: float = 2e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    epochs: int = 4
    max_steps: int | None = None
    tokens_per_batch: int = 4096
    accumulation: int = 1
    clip: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seed: int = 0
    prompt: str = "alpaca"
    max_length: int = 1024
    packing: bool = True
    gradient_checkpointing: bool = False
    memory_budget: str | None = None
    frozen_precision: Literal["model", "fp8"] = "model"
    save_every: int = 0
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "tokens_per_batch", "accumulation", "max_length", "log_every", "learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise SlamkernError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup_steps", "clip", "weight_decay", "save_every"):
            if not getattr(self, name) >= 0:
                raise SlamkernError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise SlamkernError(f"max_steps is {self.max_steps}; it must be at least 1, or None for whole epochs")
        if self.schedule not in ("cosine", "constant"):
            raise SlamkernError(f"unknown schedule {self.schedule!r}; use cosine or constant")
        if self.frozen_precision not in ("model", "fp8"):
            raise SlamkernError(f"unknown frozen_precision {self.frozen_precision!r}; use model or fp8")
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)
            if not self.packing or self.gradient_checkpointing:
                raise SlamkernError("memory_budget plans packed batches without gradient_checkpointing; choose one")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SlamkernError(f"betas are {self.betas}; each must be at least 0 and below 1")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run did. Losses are means over the supervised tokens of a step; tokens are real ones.

    held_out_loss: the same mean over the held-out pairs (before, after), None without them. padding_share: of all
    positions computed, the share that was padding.
    """

    steps: int
    loss_first: float
    loss_last: float
    losses: list[float]
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    trained_parameters: int
    total_parameters: int
    padding_share: float
    out: Path | None
    held_out_loss: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, rows: Sequence[Mapping[str, Any]], held_out: Mapping[str, float], out: Path | None
    ) -> "TrainResult":
        """The summary of the lines of metrics.jsonl and of held_out.json (empty: nothing was held out)."""
        tokens = sum(row["tokens"] for row in rows)
        seconds = sum(row["tokens"] / row["tokens_per_second"] for row in rows)
        positions = sum(row["tokens"] / (1 - row["padding_share"]) for row in rows)
        losses = [row["loss"] for row in rows]
        return cls(
            steps=len(losses),
            loss_first=losses[0],
            loss_last=losses[-1],
            losses=losses,
            tokens=tokens,
            tokens_per_second=tokens / seconds,
            peak_memory_bytes=max(row["peak_memory_bytes"] for row in rows),
            trained_parameters=sum(p.numel() for p in trained_parameters(model).values()),
            total_parameters=sum(p.numel() for p in model.parameters()),
            padding_share=1 - tokens / positions,
            out=out,
            held_out_loss=(held_out["before"], held_out["after"]) if held_out else None,
        )
