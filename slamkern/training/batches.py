"""From pairs to the micro-batches of every step, and the loss of one of them; packed or padded.

The whole plan of a run follows from the lengths of its examples and the recipe, so a step's number is all that a
checkpoint needs to know about the data. How many processes there are does not change which examples a step has: they
are dealt out, by tokens.
"""

import logging
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slamkern import distributed
from slamkern.data.buckets import bucket_size
from slamkern.data.packing import IGNORE, Example, PackPlan, collate, pack_plan, pad_plan, padded_batch
from slamkern.data.pairs import Pair
from slamkern.data.prompts import Prompt, get_prompt
from slamkern.data.rows import Rows
from slamkern.data.token_table import TokenTable
from slamkern.data.tokenization import tokenize_pairs
from slamkern.errors import SlamkernError
from slamkern.modules.eval_mode import eval_mode
from slamkern.modules.packed_attention import supports_packing
from slamkern.training.config import TrainConfig
from slamkern.training.loss import Head, packed_loss, padded_loss, read_head, with_packed_attention
from slamkern.training.sharding import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


MAX_EPOCHS = 100_000  # each is planned before the first step


class StepPlan(Rows[list[list[int]]]):
    """Every step of a run: its micro-batches, each a list of example indices. A step never spans two epochs.

    A pure function of its arguments, so the same for every number of processes: they share out a step's micro-batches.
    """

    def __init__(self, lengths: Sequence[int], config: TrainConfig) -> None:
        self._size = config.gradient_accumulation_steps
        self._epochs: list[PackPlan] = []
        self._ends: list[int] = []  # steps up to the end of each epoch
        steps = 0
        while len(self._epochs) < config.num_train_epochs if config.max_steps is None else steps < config.max_steps:
            self._epochs.append(pack_plan(lengths, config.tokens_per_batch, config.seed, len(self._epochs)))
            steps += -(-len(self._epochs[-1]) // self._size)
            epochs = config.num_train_epochs if config.max_steps is None else config.max_steps // steps
            if len(self._epochs) == 1 and epochs > MAX_EPOCHS:
                name = "num_train_epochs" if config.max_steps is None else "max_steps"
                raise SlamkernError(
                    f"{name} is {getattr(config, name):,}, which is {epochs:,} epochs of {len(lengths)} examples; at"
                    f" most {MAX_EPOCHS:,} are planned"
                )
            self._ends.append(steps)
        self._steps = min(steps, config.max_steps or steps)

    def __len__(self) -> int:
        return self._steps

    def row(self, index: int) -> list[list[int]]:
        epoch = bisect_right(self._ends, index)
        first = (index - (self._ends[epoch - 1] if epoch else 0)) * self._size
        return self._epochs[epoch][first : first + self._size]


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and in which steps, and what its held-out loss is of (None: nothing)."""

    examples: TokenTable
    held_out: TokenTable | None
    lengths: list[int]  # of the examples, in tokens
    steps: StepPlan

    @classmethod
    def of(
        cls,
        model: "PreTrainedModel",
        tokenizer: Any,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair] | None,
        config: TrainConfig,
    ) -> "TrainingData":
        """Tokenize, and plan the steps; see ``tokenize`` for what is dropped and refused."""
        context = context_of(model)
        examples = tokenize(pairs, tokenizer, config, context=context)
        unseen = tokenize(held_out, tokenizer, config, context=context) if held_out else None
        lengths = examples.lengths.tolist()
        return cls(examples, unseen, lengths, StepPlan(lengths, config))

    def batches(self, step: int) -> list[list[Example]]:
        """The micro-batches of a step (from 0)."""
        return [[self.examples[index] for index in batch] for batch in self.steps[step]]

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return max(sum(self.lengths[index] for index in batch) for step in self.steps for batch in step)


def deal(
    step: Sequence[list[Example]], processes: int, tokens_per_batch: int, *, even: bool = False
) -> list[list[list[Example]]]:
    """The micro-batches of a step for each process, of about as many tokens each; one process has the step as it is.

    Where there is a multiple of ``processes`` of them, micro-batches stay whole; otherwise single examples are dealt
    out and packed anew. The longest goes first, each to the process with the fewest tokens. Fewer examples than
    processes leave some without any. ``even`` gives each as many micro-batches, for sharded weights are gathered by all
    processes at once: what is added has one token and no loss.
    """
    if processes == 1:
        return [list(step)]
    whole = len(step) % processes == 0
    pieces = list(step) if whole else [[example] for batch in step for example in batch]
    shares: list[list[list[Example]]] = [[] for _ in range(processes)]
    load = [0] * processes
    for piece in sorted(pieces, key=_tokens, reverse=True):
        least = load.index(min(load))
        shares[least].append(piece)
        load[least] += _tokens(piece)
    if not whole:
        shares = [_pack([example for (example,) in share], tokens_per_batch) for share in shares]
    most = max(map(len, shares)) if even else 0
    filler = Example(step[0][0].input_ids[:1], (IGNORE,))
    return [[*share, *[[filler]] * (most - len(share))] for share in shares]


def _pack(examples: list[Example], tokens_per_batch: int) -> list[list[Example]]:
    if not examples:
        return []
    plan = pack_plan([len(example.input_ids) for example in examples], tokens_per_batch, seed=0, epoch=0)
    return [[examples[index] for index in batch] for batch in plan]


def _tokens(batch: Sequence[Example]) -> int:
    return sum(len(example.input_ids) for example in batch)


def step_seed(seed: int, step: int, rank: int) -> int:
    """What a process seeds its random numbers with in a step: a run that is resumed draws the same again."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def context_of(model: "PreTrainedModel") -> int | None:
    """How many tokens the model reads at once; None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def tokenize(pairs: Sequence[Pair], tokenizer: Any, config: TrainConfig, *, context: int | None = None) -> TokenTable:
    """The pairs as examples; those longer than the recipe, a batch or the model's ``context`` allows are dropped."""
    if not pairs:
        raise SlamkernError("there are no pairs to train on")
    prompt = get_prompt(config.prompt, tokenizer)
    return tokenize_within(pairs, tokenizer, prompt, longest_example(config, context))


def tokenize_within(pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt, *limits: int | None) -> TokenTable:
    """The pairs as examples, those longer than any of the limits dropped (tokens; None: no limit).

    How many were dropped in each language is logged. SlamkernError where that are all.
    """
    limit = min(number for number in limits if number is not None)
    examples = tokenize_pairs(pairs, tokenizer, prompt, max_length=limit)
    for language, count in sorted(examples.dropped.items()):
        log.warning("dropped %d pairs in %s that are longer than %d tokens", count, language, limit)
    return examples


def longest_example(config: TrainConfig, context: int | None) -> int:
    """Tokens of the longest example that the recipe, a batch and the model's ``context`` allow."""
    return min(config.max_length, config.tokens_per_batch, context or config.max_length)


def sum_loss(model: "PreTrainedModel", head: Head | None, batch: list[Example], packing: bool) -> Tensor:
    """Loss summed over the supervised tokens of a micro-batch, packed or padded.

    Padding is on the right and masked, so it does not matter which token it is.
    """
    if packing:
        return packed_loss(model, collate(batch).to(model.device), head=head)
    return padded_loss(model, padded_batch(batch, pad_id=0).to(model.device), head=head)


def mean_loss(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    *,
    head: Head | str | None = "check",
    packing: bool | None = None,
    tokens_per_batch: int = 8192,
) -> float:
    """Loss per supervised token of ``examples`` without dropout, in nats; whatever the batching, to rounding.

    head: what ``read_head`` returned; the default reads it. packing: None packs a model that can be packed. The modes
    of the model are kept. Each process of a job computes a share of the batches, and all return the same. SlamkernError
    where no token is supervised, and for a loss that is not finite.
    """
    if not (supervised := supervised_tokens(examples)):
        raise SlamkernError(f"none of the {len(examples)} examples has a token with a loss")
    if packing is None:
        packing = supports_packing(model) is None
    lengths = [len(example.input_ids) for example in examples]
    plan: Sequence[list[int]]
    if packing:
        plan = pack_plan(lengths, max(tokens_per_batch, *lengths), seed=0, epoch=0)
    else:
        plan = pad_plan(lengths, tokens_per_batch)
    total = torch.zeros((), dtype=torch.float64)
    with eval_mode(model), with_packed_attention(model) if packing else nullcontext():
        checked = read_head(model) if isinstance(head, str) else head
        for first in range(0, len(plan), distributed.world_size()):
            place = first + distributed.rank()
            if place < len(plan) or is_sharded(model):  # sharded weights are gathered by all processes at once
                batch = [examples[index] for index in plan[min(place, len(plan) - 1)]]
                loss = float(sum_loss(model, checked, batch, packing))
                total += loss if place < len(plan) else 0.0
    distributed.sum_([total])
    if not math.isfinite(loss := float(total) / supervised):
        raise SlamkernError(
            f"the loss of {len(examples)} examples is {loss}: the weights are out of what {model.dtype} computes with;"
            " train with a lower learning_rate"
        )
    return loss


def supervised_tokens(batch: Sequence[Example]) -> int:
    """How many tokens of the examples have a loss."""
    return sum(label != IGNORE for example in batch for label in example.labels[1:])


def positions(batch: Sequence[Example], config: TrainConfig) -> int:
    """How many positions a micro-batch computes, padding included."""
    if not config.packing:
        return len(batch) * max(len(example.input_ids) for example in batch)
    return bucket_size(_tokens(batch)) if config.cuda_graphs else _tokens(batch)
