"""The probe: texts in several languages through a model, statistics of its FFN neurons out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slamkern.data.languages import language
from slamkern.data.packing import Example, collate
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention, supports_packing
from slamkern.probe.recorder import record_stats
from slamkern.probe.stats import ActivationStats
from slamkern.progress import progress_bar

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One text: token ids, the language index of each token (-1 for special tokens) and its group of questions."""

    input_ids: Sequence[int]
    language_ids: Sequence[int]
    group: int


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and for each position of input_ids its language (-1: not counted) and group."""

    inputs: Mapping[str, Any]
    language_ids: Tensor
    group_ids: Tensor


def collect_stats(
    model: nn.Module,
    tokenizer: Any,
    texts: Mapping[str, Sequence[str]],
    *,
    observe: str = "gate",
    token_budget: int = 4096,
    max_length: int = 1024,
    groups: int = 8,
    progress: bool = True,
) -> ActivationStats:
    """Probe ``model`` with ``texts`` (language code -> texts) and return the statistics of its FFN neurons.

    All languages run in one pass, mixed in batches of at most ``token_budget`` tokens: packed without padding, or
    padded with texts of similar length together where the model cannot be packed. Special tokens and padding are not
    counted, and the language-model head is not computed. Text ``i`` of every language goes to question group
    ``i % groups``, so that parallel questions are resampled together. Texts over ``max_length`` tokens are cut there,
    and how many is logged.
    """
    for code in texts:
        language(code)
    if token_budget < 1 or max_length < 1 or groups < 0:
        raise SlamkernError(f"token_budget {token_budget}, max_length {max_length}, groups {groups}: out of range")
    rows = tokenize(tokenizer, texts, max_length, groups)
    reason = supports_packing(model)
    if reason is not None:
        _log.info("the probe pads its batches: %s", reason)
    batches = list((packed if reason is None else padded)(rows, token_budget))
    device = next(model.parameters()).device
    backbone = getattr(model, "base_model", model)
    training = model.training
    model.eval()
    try:
        with (
            record_stats(model, list(texts), observe=observe, groups=groups) as recorder,
            packed_attention(model) if reason is None else nullcontext(),
            torch.no_grad(),
        ):
            for batch in progress_bar(batches, desc="probe", unit="batch", show=progress):
                inputs = {
                    name: value.to(device) if isinstance(value, Tensor) else value
                    for name, value in batch.inputs.items()
                }
                with recorder.tokens(batch.language_ids, batch.group_ids if groups else None):
                    backbone(**inputs, use_cache=False)
            return recorder.stats
    finally:
        model.train(training)


def tokenize(tokenizer: Any, texts: Mapping[str, Sequence[str]], max_length: int, groups: int) -> list[Row]:
    """The texts as rows, the longest first; those that are cut are counted in the log."""
    rows = []
    cut = 0
    for index, questions in enumerate(texts.values()):
        for number, text in enumerate(questions):
            encoded = tokenizer(text, return_special_tokens_mask=True)
            cut += len(encoded["input_ids"]) > max_length
            ids = encoded["input_ids"][:max_length]
            special = encoded["special_tokens_mask"][:max_length]
            rows.append(Row(ids, [-1 if mask else index for mask in special], number % max(1, groups)))
    if cut:
        _log.warning("%d texts are longer than %d tokens and are cut there", cut, max_length)
    return sorted(rows, key=lambda row: -len(row.input_ids))


def packed(rows: Sequence[Row], token_budget: int) -> Iterator[Batch]:
    """Rows one after another, without padding, as many as the budget holds and at least one."""
    waiting = [row for row in rows if row.input_ids]
    while waiting:
        size, total = 0, 0
        while size < len(waiting) and (size == 0 or total + len(waiting[size].input_ids) <= token_budget):
            total += len(waiting[size].input_ids)
            size += 1
        some, waiting = waiting[:size], waiting[size:]
        inputs = collate([Example(tuple(row.input_ids), tuple(row.input_ids), 0) for row in some]).model_inputs
        inputs.pop("use_cache")
        languages = [index for row in some for index in row.language_ids]
        groups = [row.group for row in some for _ in row.input_ids]
        yield Batch(inputs, torch.tensor([languages]), torch.tensor([groups]))


def padded(rows: Sequence[Row], token_budget: int) -> Iterator[Batch]:
    """Rows of similar length padded on the right: causal attention never looks there, so that no mask is needed."""
    while rows:
        width = max(1, len(rows[0].input_ids))
        size = max(1, token_budget // width)
        some, rows = rows[:size], rows[size:]
        input_ids = torch.zeros(len(some), width, dtype=torch.int64)
        language_ids = torch.full((len(some), width), -1)
        group_ids = torch.zeros(len(some), width, dtype=torch.int64)
        for number, row in enumerate(some):
            input_ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
            language_ids[number, : len(row.input_ids)] = torch.tensor(row.language_ids)
            group_ids[number] = row.group
        yield Batch({"input_ids": input_ids}, language_ids, group_ids)
