"""The ways to take a training step that the profile holds side by side.

=====================  ==========================================================================================
full                   every weight trained, padded batches, the model as transformers has it
full_checkpointed      the same, activations recomputed in the backward
authors                selected layers, reentrant checkpointing, input gradients required, padded batches
hf_freeze              selected layers, padded batches
hf_freeze_grouped      the same, batches of similar length
hf_freeze_packed       the same, packed rows; attention confined by slamkern's attention function, as FlashAttention's
                       does it in transformers: stock SDPA would compute the scores of the whole row
liger_freeze           the same with Liger-Kernel's norms, rotary, SwiGLU and fused loss
lora                   adapters of rank 16 on the same projections of the same layers (PEFT), packed
slamkern               patched model, packed, loss of a frozen head on the supervised rows
slamkern_fp8           slamkern with frozen weights in FP8; on a GPU only
=====================  ==========================================================================================

All of them minimise the mean loss over the supervised tokens of the step with AdamW; ``exact`` ones train the same
weights and must trace the same curve. Training all weights in half precision keeps no float32 masters, which would not
fit.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from slamkern.bench.workload import micro_batches
from slamkern.data.packing import Example, collate, padded_batch
from slamkern.modules.fp8_linear import resident_tensors
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import patch_model
from slamkern.selection.trainable import apply_selection, trained_parameters
from slamkern.training import fp8
from slamkern.training.batches import supervised_tokens
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.step_cost import storage_bytes

LORA_RANK = 16


class Absent(Exception):
    """Why a variant has no number here."""


@dataclass(frozen=True)
class Variant:
    """A way to take a step; the defaults are transformers with the selected layers trained."""

    name: str
    layout: Literal["padded", "grouped", "packed"]
    trained: Literal["selected", "all", "lora"] = "selected"
    checkpointing: Literal["none", "reentrant", "plain"] = "none"
    engine: Literal["transformers", "liger", "slamkern", "slamkern_fp8"] = "transformers"

    @property
    def patched(self) -> bool:
        return self.engine in ("slamkern", "slamkern_fp8")

    @property
    def exact(self) -> bool:
        return self.trained == "selected" and self.engine != "slamkern_fp8"


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("full", "padded", trained="all"),
        Variant("full_checkpointed", "padded", trained="all", checkpointing="plain"),
        Variant("authors", "padded", checkpointing="reentrant"),
        Variant("hf_freeze", "padded"),
        Variant("hf_freeze_grouped", "grouped"),
        Variant("hf_freeze_packed", "packed"),
        Variant("liger_freeze", "packed", engine="liger"),
        Variant("lora", "packed", trained="lora"),
        Variant("slamkern", "packed", engine="slamkern"),
        Variant("slamkern_fp8", "packed", engine="slamkern_fp8"),
    )
}


def absent(variant: Variant, device: torch.device) -> str | None:
    """Why a variant cannot run on this machine; None where it can."""
    if variant.engine == "slamkern_fp8":
        if device.type == "cpu":
            return "FP8 is emulated on a CPU, so its speed means nothing (benchmarks.fp8 compares the losses)"
        return fp8.why_not(device)
    if variant.engine == "liger" and device.type != "cuda":
        return "Liger-Kernel needs a CUDA device"
    needed = {"liger": "liger_kernel"}.get(variant.engine) or ("peft" if variant.trained == "lora" else None)
    if needed and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed (extra bench)"
    return None


class Runner:
    """One variant on one model, which it changes: ``backward`` and then ``update`` are a step.

    layers: those that are trained. batch: sequences padded together; ``at_once`` of them are computed at a time, which
    changes memory but not the padding. row: tokens of a packed micro-batch.
    """

    def __init__(
        self,
        variant: Variant,
        model: Any,
        layers: Sequence[int],
        *,
        rate: float,
        batch: int,
        row: int,
        at_once: int | None = None,
    ) -> None:
        self.variant, self.model, self.rate, self.batch, self.row = variant, model, rate, batch, row
        self.at_once = at_once or batch
        self._stack = ExitStack()
        model.train()
        if variant.trained == "lora":
            _inject_lora(model, layers)
        elif variant.trained == "selected":
            apply_selection(model, layers)
        if variant.engine == "liger":
            self._apply_liger()
        if variant.patched:
            patch_model(model)
        if variant.engine == "slamkern_fp8":
            self._stack.enter_context(fp8.frozen_in_fp8(model))
        if variant.layout == "packed":
            self._stack.enter_context(packed_attention(model))
        if variant.checkpointing != "none":
            reentrant = variant.checkpointing == "reentrant"
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        self.head = read_head(model) if variant.patched else None
        trained = trained_parameters(model)
        self.trained_parameters = sum(parameter.numel() for parameter in trained.values())
        self.optimizer: MasterAdamW | torch.optim.AdamW = (
            torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.0, fused=True)
            if variant.trained == "all"
            else MasterAdamW(trained.items())
        )

    def cut(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The micro-batches of a step."""
        return micro_batches(examples, self.variant.layout, batch=self.batch, row=self.row)

    def positions(self, examples: Sequence[Example]) -> int:
        """Positions computed in a step, padding included."""
        if self.variant.layout == "packed":
            return sum(len(example.input_ids) for example in examples)
        return sum(len(batch) * max(len(example.input_ids) for example in batch) for batch in self.cut(examples))

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Compute a step that is not taken."""
        self.backward(examples)
        if isinstance(self.optimizer, MasterAdamW):
            self.optimizer.clear_gradients()
        else:
            self.optimizer.zero_grad(set_to_none=True)

    def backward(self, examples: Sequence[Example]) -> float:
        """Forward and backward of a step; returns the mean loss over its supervised tokens."""
        supervised = supervised_tokens(examples)
        total = torch.zeros((), device=self.model.device)
        for batch in self.cut(examples):
            for loss in self._losses(batch, supervised):
                loss.backward()
                if isinstance(self.optimizer, MasterAdamW):
                    self.optimizer.collect_gradients()
                total += loss.detach()
        return float(total)  # device sync

    def _losses(self, batch: list[Example], supervised: int) -> Iterator[Tensor]:
        """The parts of the mean over the ``supervised`` tokens of the step that this micro-batch has."""
        device = self.model.device
        if self.variant.layout != "packed":
            padded = padded_batch(batch, 0)
            for rows in zip(*(tensor.to(device).split(self.at_once) for tensor in padded.values()), strict=True):
                inputs = dict(zip(padded, rows, strict=True))
                yield self.model(**inputs, use_cache=False, num_items_in_batch=supervised).loss
            return
        packed = collate(batch).to(device)
        if self.variant.patched:
            yield packed_loss(self.model, packed, head=self.head) / supervised
        else:
            yield self.model(**packed.model_inputs, labels=packed.labels, num_items_in_batch=supervised).loss

    def update(self) -> None:
        """Clip and step."""
        if isinstance(self.optimizer, MasterAdamW):
            self.optimizer.clip(1.0)
            self.optimizer.step(self.rate)
            return
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def resident_bytes(self) -> int:
        """Weights, masters and optimizer state."""
        if isinstance(self.optimizer, MasterAdamW):
            state = list(self.optimizer.state_dict().values())
        else:
            state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return storage_bytes([*resident_tensors(self.model), *state])

    def close(self) -> None:
        """Undo what reaches beyond the model."""
        self._stack.close()

    def _apply_liger(self) -> None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # Liger also replaces names in transformers' module of the model, for everybody else too.
        module = sys.modules[type(self.model).__module__]
        before = dict(vars(module))
        self._stack.callback(lambda: vars(module).update(before))
        _apply_liger_kernel_to_instance(model=self.model)


def _inject_lora(model: Any, layers: Sequence[int]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules=["up_proj", "down_proj"],
        layers_to_transform=list(layers),
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
