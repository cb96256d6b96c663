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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from slamkern.errors import SlamkernError
from slamkern.training import fp8
from slamkern.training.step_cost import Dimensions

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
            return fp8.unavailable_reason(device)
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
