"""A model as the training loop needs it: mode, attention, checkpointing, precision, memory; all undone afterwards."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from slamkern.modules.packed_attention import packed_attention
from slamkern.selection.trainable import trained_parameters
from slamkern.training.accumulate import cuda_devices
from slamkern.training.batches import TrainingData
from slamkern.training.config import TrainConfig
from slamkern.training.fp8 import frozen_in_fp8
from slamkern.training.loss import Head, describe_head, read_head
from slamkern.training.memory_budget import parse_bytes, within_budget
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.sharding import shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@contextmanager
def prepared(
    model: "PreTrainedModel", data: TrainingData, config: TrainConfig
) -> Iterator[tuple[Head | None, MasterAdamW]]:
    """Yield the output head that the loss uses (see ``read_head``) and the optimizer of the trained weights.

    Inside, random numbers are the block's own. Afterwards the model is as it was, except that it stays sharded.
    SlamkernError where it does not fit into ``config.memory_budget``, or cannot be packed, sharded or quantized.
    """
    if config.fsdp:
        shard(model)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(model)))
        stack.callback(model.train, model.training)
        model.train()
        if config.packing:
            stack.enter_context(packed_attention(model))
        if config.gradient_checkpointing and not model.is_gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            stack.callback(model.gradient_checkpointing_disable)
        if config.frozen_precision == "fp8":
            # Copies for the backward only where memory is no concern.
            log.info(stack.enter_context(frozen_in_fp8(model, keep_transposed=config.memory_budget is None)))
        head = read_head(model)
        log.info(describe_head(head))
        offload = config.optimizer_offload
        if config.memory_budget is not None:
            budget = within_budget(
                model,
                data.most_tokens,
                parse_bytes(config.memory_budget),
                length=max(data.lengths),
                accumulation=config.gradient_accumulation_steps,
                head=head,
                offload=offload,
            )
            offload = stack.enter_context(budget).offload
        optimizer = MasterAdamW(
            trained_parameters(model).items(),
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            offload=offload,
        )
        yield head, optimizer
