"""What training refuses before it reads, writes or changes anything."""

import os
from typing import TYPE_CHECKING, Any

from torch import nn

from slamkern.errors import SlamkernError
from slamkern.modules.cuda_graphs import check_capturable
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trainable_tensors, trained_parameters
from slamkern.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_model(model: "PreTrainedModel", selection: LayerSelection | None, config: TrainConfig) -> None:
    """SlamkernError for a model that this recipe cannot train, or one that was frozen for another selection."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise SlamkernError(
            f"train wants the model itself, not {type(model).__name__}; give it model.module: every process of the job"
            " computes its share, and gradients are summed once a step"
        )
    peft: Any = getattr(model, "active_peft_config", None)
    if getattr(peft, "is_prompt_learning", False):
        raise SlamkernError(
            f"{type(peft).__name__} puts virtual tokens before each sequence, for which packed batches and their loss"
            " have no place; train an adapter in the layers (LoRA, DoRA, IA3), or use transformers' Trainer"
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not config.fsdp:
        raise SlamkernError("accelerate launch --use_fsdp: set fsdp (train.fsdp=true) too, or launch with --multi_gpu")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SlamkernError("the model has weights on the meta device, which hold no values; load it before training")
    if not trained_parameters(model):
        raise SlamkernError("no parameter requires a gradient; call apply_selection(model, selection) before training")
    layers = {entry.layer for entry in trainable_tensors(model)}
    if selection is not None and layers != set(selection.layers):
        raise SlamkernError(
            f"the selection names layers {sorted(selection.layers)}, but {sorted(layers)} are trainable;"
            " call apply_selection(model, selection) before training"
        )
    if config.cuda_graphs:
        check_capturable(parameter.device for parameter in model.parameters())
    if config.optimizer_offload and model.device.type == "cpu":
        raise SlamkernError("optimizer_offload=True is for a model on a GPU; this one is in host memory already")
