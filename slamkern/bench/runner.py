"""One variant of a training step on one model: the model made ready for it, its micro-batches, its optimizer."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slamkern.bench.variants import Settings, Variant
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


class Runner:
    """One variant on one model, which it changes: ``backward`` and then ``update`` are a step."""

    def __init__(self, variant: Variant, model: Any, settings: Settings) -> None:
        self.variant, self.model, self.settings = variant, model, settings
        self._stack = ExitStack()
        model.train()
        if variant.trained == "lora":
            _inject_lora(model, settings.layers)
        elif variant.trained == "selected":
            apply_selection(model, settings.layers)
        if variant.engine.startswith("liger"):
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
            torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
            if variant.trained == "all"
            else MasterAdamW(trained.items())
        )

    def cut(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The micro-batches of a step."""
        padded, packed = self.settings.padded_batch_size, self.settings.packed_tokens
        return micro_batches(examples, self.variant.layout, padded_batch_size=padded, packed_tokens=packed)

    def positions(self, examples: Sequence[Example]) -> int:
        """Positions computed in a step, padding included."""
        if self.variant.layout == "packed":
            return sum(len(example.input_ids) for example in examples)
        return sum(len(batch) * max(len(example.input_ids) for example in batch) for batch in self.cut(examples))

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
            padded, size = padded_batch(batch, pad_id=0).to(device), self.settings.micro_batch_size or len(batch)
            for first in range(0, len(batch), size):
                part = slice(first, first + size)
                inputs = {name: getattr(padded, name)[part] for name in ("input_ids", "attention_mask", "labels")}
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
            self.optimizer.step(self.settings.learning_rate)
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
        if self.variant.engine == "liger_mlp":
            from liger_kernel.ops import LigerMLPFunction

            for layer in self.model.model.layers:
                layer.mlp.forward = partial(_liger_mlp, layer.mlp, LigerMLPFunction.apply)


def _liger_mlp(mlp: Any, apply: Any, x: Tensor) -> Tensor:
    return apply(x, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)


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
