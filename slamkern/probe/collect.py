"""The probe: texts in several languages through a model, statistics of its FFN neurons out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slamkern import distributed
from slamkern.data.buckets import in_bucket
from slamkern.data.languages import language
from slamkern.data.packing import Example, PackedBatch, PaddedBatch, collate, pack_plan, pad_plan, padded_batch
from slamkern.data.tokenization import tokenize_texts
from slamkern.errors import SlamkernError, refuse_string
from slamkern.modules.cuda_graphs import Graphs, check_capturable
from slamkern.modules.eval_mode import eval_mode
from slamkern.modules.finite import check_finite
from slamkern.modules.packed_attention import packed_attention, supports_packing
from slamkern.probe.recorder import record_stats
from slamkern.probe.stats import ActivationStats
from slamkern.progress import progress_bar

_log = logging.getLogger(__name__)


def collect_stats(
    model: nn.Module,
    tokenizer: Any,
    texts: Mapping[str, Sequence[str]],
    *,
    observe: str = "gate",
    token_budget: int = 4096,
    max_length: int = 1024,
    groups: int = 8,
    cuda_graphs: bool = False,
    progress: bool = True,
) -> ActivationStats:
    """Probe ``model`` with ``texts`` (language code -> texts) and return the statistics of its FFN neurons.

    All languages run in one pass, mixed in batches of at most ``token_budget`` tokens: packed without padding, or
    padded with texts of similar length together where the model cannot be packed. Special tokens and padding are not
    counted, and the language-model head is not computed. Every process of a job counts a share of the batches, and all
    return the same statistics. Text ``i`` of every language goes to question group
    ``i % groups``, so that parallel questions are resampled together. Texts over ``max_length`` tokens, or over the
    model's context, are cut there, and how many is logged. ``cuda_graphs`` pads packed batches to a few shapes and
    replays a CUDA graph for each, where launches rather than the GPU set the pace; for a model on one GPU.
    SlamkernError for texts that cannot be read, and for activations or weights that are not finite.
    """
    model = distributed.unwrapped(model)
    for code, of_language in texts.items():
        language(code)
        refuse_string(of_language, f"texts[{code!r}]")
    if token_budget < 1 or max_length < 1 or groups < 0:
        raise SlamkernError(f"token_budget {token_budget}, max_length {max_length}, groups {groups}: out of range")
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None) or max_length
    examples = tokenize_texts(texts, tokenizer, max_length=min(max_length, context), groups=groups)
    device = next(model.parameters()).device
    backbone = getattr(model, "base_model", model)
    with record_stats(model, list(texts), observe=observe, groups=groups) as recorder, eval_mode(model):
        reason = supports_packing(model)
        if reason is not None:
            _log.info("the probe pads its batches: %s", reason)
        if cuda_graphs:
            check_capturable(parameter.device for parameter in model.parameters())
            if reason is not None:
                raise SlamkernError(f"cuda_graphs needs packed batches: {reason}; use cuda_graphs=False")
        batches = list(probe_batches(examples, token_budget, packing=reason is None))
        batches = batches[distributed.rank() :: distributed.world_size()]

        def count(batch: PackedBatch | PaddedBatch) -> None:
            with recorder.tokens(batch.language_ids, batch.group_ids if groups else None):
                backbone(**probe_inputs(batch, device))

        run = Graphs(count, device) if cuda_graphs else count
        with packed_attention(model) if reason is None else nullcontext():
            for batch in progress_bar(batches, desc="probe", unit="batch", show=progress):
                run(in_bucket(batch) if cuda_graphs and isinstance(batch, PackedBatch) else batch)
        recorder.merge_processes()
        stats = recorder.stats
        # What is behind the last observed tensor shows in no statistics.
        check_finite(dict(model.named_parameters()), "its statistics mean nothing; load the model it should be")
        return stats


def probe_batches(
    examples: Sequence[Example], token_budget: int, *, packing: bool
) -> Iterator[PackedBatch | PaddedBatch]:
    """The examples in batches of at most ``token_budget`` positions; a longer example is a batch of its own size."""
    lengths = [len(example.input_ids) for example in examples]
    if not lengths:
        return
    if not packing:
        for batch in pad_plan(lengths, token_budget):
            yield padded_batch([examples[index] for index in batch], pad_id=0)
        return
    for batch in pack_plan(lengths, max(token_budget, *lengths), seed=0, epoch=0):
        # In the order of the examples, so that a language's tokens lie together: a tile of the kernel then has one.
        yield collate([examples[index] for index in sorted(batch)])


def probe_inputs(batch: PackedBatch | PaddedBatch, device: torch.device) -> dict[str, Any]:
    """What the model is called with, on ``device``.

    Padding is on the right, where causal attention never looks, and is not counted: it needs no mask.
    """
    inputs = {name: value for name, value in batch.model_inputs.items() if name != "attention_mask"}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
