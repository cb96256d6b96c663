"""What training refuses before it reads, writes or changes anything."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slamkern import distributed
from slamkern.errors import SlamkernError
from slamkern.modules.cuda_graphs import check_capturable
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trainable_tensors, trained_parameters
from slamkern.training.config import TrainConfig
from slamkern.training.footprint import Footprint, gradient_bytes, state_bytes
from slamkern.training.memory_budget import offload_choice, parse_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_recipe(config: TrainConfig, device: torch.device | None, *, processes: int, fsdp_launch: bool) -> None:
    """SlamkernError for a recipe that this machine or job cannot follow, whatever the model.

    device: where the model will be; None: on a machine that is not this one. fsdp_launch: ``accelerate launch
    --use_fsdp`` starts the ``processes``.
    """
    if fsdp_launch and not config.fsdp:
        raise SlamkernError("accelerate launch --use_fsdp: set fsdp (train.fsdp=true) too, or launch with --multi_gpu")
    if config.fsdp and processes == 1:
        raise SlamkernError("fsdp shards a model over several processes; start them with accelerate launch or torchrun")
    if device is None:
        return
    if config.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise SlamkernError("report_to tensorboard needs its package: pip install 'slamkern[tensorboard]'")
    if config.cuda_graphs:
        check_capturable([device])
    if config.optimizer_offload and device.type == "cpu":
        raise SlamkernError("optimizer_offload=True is for a model on a GPU; this one is in host memory already")


def check_budget(model: nn.Module, trained: Sequence[int], config: TrainConfig, *, on_host: bool) -> None:
    """SlamkernError for a budget below what a step takes before it has a token; the model may be on the meta device.

    trained: numbers of elements of what is trained. on_host: the model will be in host memory.
    """
    assert config.memory_budget is not None
    parameters = list(model.parameters())
    itemsize, accumulation = parameters[0].itemsize, config.gradient_accumulation_steps
    # In FP8 a weight has at least a byte.
    smallest = 1 if config.frozen_precision == "fp8" else itemsize
    fixed = Footprint(
        weights=smallest * sum(parameter.numel() for parameter in parameters),
        state=sum(state_bytes(size, itemsize, accumulation) for size in trained),
        gradients=sum(gradient_bytes(size, itemsize, accumulation) for size in trained),
        offloaded_gradients=itemsize * sum(trained),
        saved={}, recomputable={}, highest=0, ffn=0, recomputing=0, logits=0,
    )  # fmt: skip
    fixed.plan(1, parse_bytes(config.memory_budget), offload=offload_choice(config.optimizer_offload, on_host))


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
    check_recipe(config, model.device, processes=distributed.world_size(), fsdp_launch=distributed.launched_with_fsdp())
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
