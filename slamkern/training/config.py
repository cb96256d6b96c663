"""What goes into a training run and what comes out: the recipe, checked when it is written down, and the result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from slamkern.errors import SlamkernError
from slamkern.selection.trainable import total_parameters, trained_parameters
from slamkern.training.memory_budget import parse_bytes

_COUNTS = ("num_train_epochs", "tokens_per_batch", "gradient_accumulation_steps", "max_length", "logging_steps")
_POSITIVE = ("learning_rate", "adam_epsilon")
# Every epoch is planned before the first step: more of them than anyone has would be a hang.
_LARGEST = {"max_steps": 1_000_000, "num_train_epochs": 10_000}
_CHOICES = {
    "lr_scheduler_type": ("cosine", "constant", "constant_with_warmup"),
    "frozen_precision": ("model", "fp8"),
    "on_oom": ("stop", "halve"),
    "report_to": ("none", "tensorboard"),
}


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Defaults are SLAM's (lr 2e-5, cosine, 4 epochs, length 1024, no weight decay, clip 1.0).

    Fields have the names of ``transformers.TrainingArguments`` (and of TRL's ``SFTConfig``) where both mean the same.

    output_dir: folder for logs, checkpoints and the resulting delta; None writes nothing.
    lr_scheduler_type: "cosine", "constant", or "constant_with_warmup"; ``warmup_steps`` rise from 0 to the peak.
    max_steps: exactly this many steps, over as many epochs as they take, instead of ``num_train_epochs``.
    tokens_per_batch: at most this many tokens in a micro-batch, of which a step has ``gradient_accumulation_steps``.
    max_grad_norm: gradients are clipped to this global 2-norm; 0: no clipping.
    save_steps: a checkpoint every so many steps. save_minutes: one where the last is so many minutes old, at the end of
    a step; 0: none. Ctrl-C, SIGTERM and SIGHUP write one in any case.
    on_oom: where memory is not enough, "stop", or "halve" the micro-batches and go on: the same step, to rounding.
    packing: False pads batches instead, for models without packed attention.
    gradient_checkpointing: recompute activations in backward, for less memory.
    memory_budget: like "24GB"; as few FFNs as it takes for a step to fit recompute gate and up, and where all of them
    are not enough the optimizer is offloaded too (see footprint.py).
    optimizer_offload: AdamW's moments and the float32 masters in host memory, stepped there; for a model on a GPU.
    frozen_precision: "model", the dtype the model is in, or "fp8" for the frozen Linears of its layers (see fp8.py).
    cuda_graphs: pad packed batches to a few shapes and replay a CUDA graph for each, where launches rather than the GPU
    set the pace (small models, small batches); for a model on one GPU, in bfloat16 or float16. Takes the memory of a
    micro-batch's activations twice: the first batch of a shape runs beside the graphs.
    fsdp: shard the decoder layers over the processes of a job, for a model that fits no single GPU (see sharding.py).
    report_to: "tensorboard" also writes its events to ``output_dir``.
    """

    output_dir: str | Path | None = None
    learning_rate: float = 2e-5
    lr_scheduler_type: Literal["cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: int = 0
    num_train_epochs: int = 4
    max_steps: int | None = None
    tokens_per_batch: int = 4096
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    seed: int = 0
    prompt: str = "alpaca"
    max_length: int = 1024
    packing: bool = True
    gradient_checkpointing: bool = False
    memory_budget: str | None = None
    optimizer_offload: bool = False
    frozen_precision: Literal["model", "fp8"] = "model"
    cuda_graphs: bool = False
    fsdp: bool = False
    save_steps: int | None = None
    save_minutes: float = 10.0
    on_oom: Literal["stop", "halve"] = "stop"
    logging_steps: int = 10
    report_to: Literal["none", "tensorboard"] = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, get_args(field.type) or (field.type,), getattr(self, field.name))
        for name in (*_COUNTS, *_POSITIVE):
            if not getattr(self, name) > 0:
                raise SlamkernError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in (*_COUNTS, "max_steps", "save_steps", "warmup_steps"):
            if (getattr(self, name) or 0) >= 2**31:
                raise SlamkernError(f"{name} is {getattr(self, name)}; it must be below 2^31")
        if not 0 <= self.seed < 2**63:
            raise SlamkernError(f"seed is {self.seed}; it must be at least 0 and below 2^63")
        for name in ("warmup_steps", "max_grad_norm", "weight_decay", "save_minutes"):
            if not getattr(self, name) >= 0:
                raise SlamkernError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name, otherwise in (("max_steps", "whole epochs"), ("save_steps", "save_minutes alone")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SlamkernError(f"{name} is {value}; it must be at least 1, or None for {otherwise}")
        for name, largest in _LARGEST.items():
            if (getattr(self, name) or 0) > largest:
                raise SlamkernError(f"{name} is {getattr(self, name):,}; it must be at most {largest:,}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SlamkernError(f"unknown {name} {getattr(self, name)!r}; use {' or '.join(known)}")
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise SlamkernError("lr_scheduler_type constant has no warmup_steps; use constant_with_warmup")
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)
            if not self.packing or self.gradient_checkpointing:
                raise SlamkernError("memory_budget plans packed batches without gradient_checkpointing; choose one")
        alone = {"memory_budget": None, "optimizer_offload": False, "on_oom": "stop"}
        self._refuse_beside("fsdp", frozen_precision="model", cuda_graphs=False, **alone)
        self._refuse_beside("cuda_graphs", packing=True, gradient_checkpointing=False, **alone)
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SlamkernError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")

    def _refuse_beside(self, option: str, **usual: object) -> None:
        for name, value in usual.items() if getattr(self, option) else ():
            if getattr(self, name) != value:
                raise SlamkernError(f"{option} and {name} {getattr(self, name)} do not go together; choose one")


def _check_kind(name: str, kinds: Sequence[object], value: object) -> None:
    """SlamkernError for a value that is no number of its field's kind: True is none, and 1.5 no number of steps."""
    wanted = None
    if int in kinds and type(value) is not int:
        wanted = "a whole number"
    elif float in kinds and not (type(value) is not bool and isinstance(value, int | float) and abs(value) < math.inf):
        wanted = "a finite number"
    elif bool in kinds and type(value) is not bool:
        wanted = "True or False"
    if wanted and not (value is None and type(None) in kinds):
        raise SlamkernError(f"{name} is {value!r}; it must be {wanted}")


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
    output_dir: Path | None
    held_out_loss: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, rows: Sequence[Mapping[str, Any]], held_out: Mapping[str, float], output_dir: Path | None
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
            total_parameters=total_parameters(model),
            padding_share=1 - tokens / positions,
            output_dir=output_dir,
            held_out_loss=(held_out["before"], held_out["after"]) if held_out else None,
        )
