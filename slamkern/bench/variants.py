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
liger_mlp              the same, but the whole FFN as Liger's Triton products, which compute the gradients of all
                       three weights of every layer: half of the backward of a frozen one is wasted
lora                   adapters of rank 16 on the same projections of the same layers (PEFT), packed
slamkern               patched model, packed, loss of a frozen head on the supervised rows
slamkern_fp8           slamkern with frozen weights in FP8; on a GPU only
=====================  ==========================================================================================

All of them minimize the mean loss over the supervised tokens of the step with AdamW; ``exact`` ones train the same
weights and must trace the same curve. Training all weights in half precision keeps no float32 masters, which would not
fit.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from slamkern.bench.workload import micro_batches
from slamkern.data.packing import Example, collate, padded_batch
from slamkern.errors import SlamkernError
from slamkern.modules.fp8_linear import resident_tensors
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import patch_model
from slamkern.selection.trainable import apply_selection, trained_parameters
from slamkern.training import fp8
from slamkern.training.batches import supervised_tokens
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.step_cost import Dimensions, storage_bytes

LORA_RANK = 16
# Engine -> the package whose kernels a step of it must launch on a GPU.
KERNELS = {
    "liger": "liger_kernel",
    "liger_mlp": "liger_kernel",
    "slamkern": "slamkern.kernels",
    "slamkern_fp8": "slamkern.kernels",
}


@dataclass(frozen=True)
class Variant:
    """A way to take a step; the defaults are transformers with the selected layers trained."""

    name: str
    layout: Literal["padded", "grouped", "packed"]
    trained: Literal["selected", "all", "lora"] = "selected"
    checkpointing: Literal["none", "reentrant", "plain"] = "none"
    engine: Literal["transformers", "liger", "liger_mlp", "slamkern", "slamkern_fp8"] = "transformers"

    @property
    def patched(self) -> bool:
        return self.engine in ("slamkern", "slamkern_fp8")

    @property
    def exact(self) -> bool:
        return self.trained == "selected" and self.engine != "slamkern_fp8"

    def unavailable_reason(self, device: torch.device) -> str | None:
        """Why this variant cannot run on this machine; None where it can."""
        if self.engine == "slamkern_fp8":
            if device.type == "cpu":
                return "FP8 is emulated on a CPU, so its speed means nothing (benchmarks.fp8 compares the losses)"
            return fp8.why_not(device)
        liger = self.engine.startswith("liger")
        if liger and device.type != "cuda":
            return "Liger-Kernel needs a CUDA device"
        needed = "liger_kernel" if liger else "peft" if self.trained == "lora" else None
        if needed and importlib.util.find_spec(needed) is None:
            return f"{needed} is not installed (extra bench)"
        return None

    def uncounted_flops(self, dimensions: Dimensions, tokens: int, lowest: int) -> int:
        """FLOPs of a step in Triton products, which torch's counter does not see.

        liger_mlp: gate and up in the forward; from the lowest trained layer on the gradients of the hidden neurons (one
        product) and of the input (two). Its weight gradients go through cuBLAS and are counted.
        """
        if self.engine != "liger_mlp":
            return 0
        products = 2 * dimensions.layers + 3 * (dimensions.layers - lowest)
        return products * 2 * tokens * dimensions.hidden * dimensions.neurons


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
        Variant("liger_mlp", "packed", engine="liger_mlp"),
        Variant("lora", "packed", trained="lora"),
        Variant("slamkern", "packed", engine="slamkern"),
        Variant("slamkern_fp8", "packed", engine="slamkern_fp8"),
    )
}


@dataclass(frozen=True)
class Settings:
    """How the steps of all variants are taken. layers: the trained ones.

    padded_batch_size: sequences padded together; micro_batch_size: of these, computed at a time (None: all), which
    changes memory but not the padding. packed_tokens: tokens of a packed micro-batch. repeats: on a GPU, where variants
    run one after another, how often all of them take all steps.
    """

    layers: Sequence[int]
    padded_batch_size: int = 64
    micro_batch_size: int | None = None
    packed_tokens: int = 4096
    learning_rate: float = 1e-3
    variants: Sequence[str] = tuple(VARIANTS)
    repeats: int = 1

    def __post_init__(self) -> None:
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise SlamkernError(f"unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")


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
            padded, size = padded_batch(batch, 0), self.settings.micro_batch_size or len(batch)
            for rows in zip(*(tensor.to(device).split(size) for tensor in padded.values()), strict=True):
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
