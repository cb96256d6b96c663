"""From pairs to the micro-batches of every step, and the loss of one of them; packed or padded.

The whole plan of a run follows from the lengths of its examples and the recipe, so a step's number is all that a
checkpoint needs to know about the data.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slamkern.data.packing import IGNORE, Example, collate, pack_plan, padded_batch, tokenize_pairs
from slamkern.data.pairs import Pair
from slamkern.data.prompts import get_prompt
from slamkern.errors import SlamkernError
from slamkern.training.config import TrainConfig
from slamkern.training.loss import Head, packed_loss, padded_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def plan_steps(lengths: Sequence[int], config: TrainConfig) -> list[list[list[int]]]:
    """Every step of a run: its micro-batches, each a list of example indices. A step never spans two epochs."""
    steps: list[list[list[int]]] = []
    epoch = 0
    while epoch < config.num_train_epochs if config.max_steps is None else len(steps) < config.max_steps:
        batches = pack_plan(lengths, config.tokens_per_batch, config.seed, epoch)
        size = config.gradient_accumulation_steps
        steps += [batches[first : first + size] for first in range(0, len(batches), size)]
        epoch += 1
    return steps[: config.max_steps]


def tokenize(pairs: Sequence[Pair], tokenizer: Any, config: TrainConfig) -> list[Example]:
    if not pairs:
        raise SlamkernError("there are no pairs to train on")
    languages = sorted({pair.source_language for pair in pairs})
    prompt = get_prompt(config.prompt, tokenizer)
    examples, dropped = tokenize_pairs(
        pairs, tokenizer, prompt, max_length=min(config.max_length, config.tokens_per_batch), languages=languages
    )
    for language, count in dropped.items():
        if count:
            log.warning("dropped %d pairs in %s that are longer than %d tokens", count, language, config.max_length)
    return examples


def sum_loss(model: "PreTrainedModel", head: Head | None, batch: list[Example], packing: bool, pad_id: int) -> Tensor:
    if packing:
        return packed_loss(model, collate(batch).to(model.device), head=head)
    padded = {name: tensor.to(model.device) for name, tensor in padded_batch(batch, pad_id).items()}
    return padded_loss(model, padded, head=head)


@torch.no_grad()
def mean_loss(
    model: "PreTrainedModel", head: Head | None, examples: list[Example], config: TrainConfig, pad_id: int
) -> float:
    """Loss per supervised token without dropout; leaves the model in training mode."""
    model.eval()
    plan = pack_plan([len(example.input_ids) for example in examples], config.tokens_per_batch, seed=0, epoch=0)
    batches = [[examples[index] for index in batch] for batch in plan]
    total = sum(float(sum_loss(model, head, batch, config.packing, pad_id)) for batch in batches)
    model.train()
    return total / supervised_tokens(examples)


def supervised_tokens(batch: Sequence[Example]) -> int:
    return sum(label != IGNORE for example in batch for label in example.labels[1:])


def padded_positions(batch: Sequence[Example]) -> int:
    return len(batch) * max(len(example.input_ids) for example in batch)
