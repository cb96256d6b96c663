"""Batched greedy decoding: prompts in, texts out, on any Hugging Face causal language model.

The next token is always the most probable one: nothing of the model's generation config is used except its
end-of-sequence tokens, so a repetition penalty or a temperature that a checkpoint ships cannot color a score.
Prompts run longest first (an out-of-memory shows at once). A row that meets an end-of-sequence token or a stop string
leaves and the next prompt takes its place (``decoding``); models that remember more than keys and values go batch by
batch through their own ``generate``. In float32 the texts do not depend on the batching (up to exact ties); in bfloat16
a near tie can fall either way.

It does not sample, does not search beams, and does not move the model between devices.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from slamkern import distributed
from slamkern.data.prompts import encode_prompts
from slamkern.errors import SlamkernError
from slamkern.evaluation.decoding import Decoder, can_decode
from slamkern.item_stream import stream_to_main
from slamkern.modules.eval_mode import eval_mode
from slamkern.training.batches import context_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 512,
    batch_tokens: int = 16384,
    batch_size: int | None = None,
    stop: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, str, bool]]:
    """Yield ``(index into prompts, generated text, whether it came to its end)`` for every prompt, as they finish.

    An end is an end-of-sequence token or a stop string; a text without one was cut at ``max_new_tokens``.
    As many rows run at once as fit ``batch_tokens`` cache positions, a row taking the longest prompt plus
    ``max_new_tokens`` (one row always fits), and at most ``batch_size`` rows. The text excludes the prompt, special
    tokens, and everything from the first stop string on. ``names`` (default: positions) name prompts in errors.

    Of several processes each decodes a share; the main one yields all texts, the others none.

    Raises SlamkernError, at the first ``next`` and before anything is generated, when a prompt is empty or when a
    prompt plus ``max_new_tokens`` exceeds the model's context.
    """
    options = {"max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens, "batch_size": batch_size}
    for option, value in options.items():
        if value is not None and value < 1:
            raise SlamkernError(f"{option} must be at least 1, not {value}")
    if any(not text for text in stop):
        raise SlamkernError("an empty stop string would stop every answer at once; leave it out")
    rows = encode_prompts(list(prompts), tokenizer)
    shown = names if names is not None else [f"#{i}" for i in range(len(rows))]
    check_lengths(rows, max_new_tokens, context_of(model), shown)
    share = range(len(rows))[distributed.rank() :: distributed.world_size()]
    own = [rows[index] for index in share]
    batches = plan_batches([len(row) + max_new_tokens for row in own], batch_tokens, batch_size)
    texts = _decode(model, tokenizer, own, batches, max_new_tokens, stop)
    yield from stream_to_main((share[position], text, ended) for position, text, ended in texts)


def _decode(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Sequence[int]],
    batches: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
) -> Iterator[tuple[int, str, bool]]:
    """(index into rows, text, whether it ended) of every row, as they finish; the first batch says how many at once."""
    ends = end_tokens(model, tokenizer)
    if not can_decode(model):
        for batch in batches:
            with eval_mode(model):
                new_tokens = _decode_batch(model, tokenizer, [rows[i] for i in batch], ends, max_new_tokens, stop)
            for index, tokens in zip(batch, new_tokens, strict=True):
                yield index, *_text(tokenizer, tokens, ends, stop)
        return
    order = [index for batch in batches for index in batch]
    stops = _Stops(tokenizer, stop)
    decoder = Decoder(
        model,
        [rows[index] for index in order],
        rows=len(batches[0]) if batches else 0,
        max_new_tokens=max_new_tokens,
        finished=lambda tokens: tokens[-1] in ends or stops.met(tokens),
    )
    while True:
        with eval_mode(model):  # until a row is done: the caller runs between the yields, in the modes it chose
            done = decoder.run()
        if not done:
            return
        for position, tokens in done:
            yield order[position], *_text(tokenizer, tokens, ends, stop)


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that end a text: those of the model's generation config (one or a list) and the tokenizer's EOS, sorted."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return sorted(ends | ({tokenizer.eos_token_id} - {None}))


def plan_batches(lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None) -> list[list[int]]:
    """Indices of ``lengths`` in batches, longest first, each at most ``batch_tokens`` padded (or a single row)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches:
            rows = len(batches[-1]) + 1
            if rows * lengths[batches[-1][0]] <= batch_tokens and rows <= (batch_size or rows):
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


def check_lengths(
    rows: Sequence[Sequence[int]], max_new_tokens: int, context: int | None, names: Sequence[str]
) -> None:
    """SlamkernError, naming the first, for a prompt (token ids) that is empty or too long to be continued so far."""
    for name, row in zip(names, rows, strict=True):
        if not row:
            raise SlamkernError(f"prompt {name} has no tokens: there is nothing to continue")
        if context is not None and len(row) + max_new_tokens > context:
            raise SlamkernError(
                f"prompt {name} has {len(row)} tokens and max_new_tokens is {max_new_tokens}, but the model's context "
                f"is {context}: at most {max(0, context - len(row))} new tokens fit"
            )


def _decode_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Sequence[int]],
    ends: list[int],
    max_new_tokens: int,
    stop: Sequence[str],
) -> list[list[int]]:
    """The new tokens of every row, up to ``max_new_tokens`` of them; after a row's end there may be padding."""
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    width = max(map(len, rows))
    # (rows, width) int64, left-padded: the last column is the last prompt token of every row.
    input_ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=pad, eos_token_id=ends or None
    )
    # transformers fills what a config leaves open from model.generation_config, so that one has to stand aside.
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        output: Any = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=greedy,
            stopping_criteria=[_Stops(tokenizer, stop, width)] if stop else None,
        )
    finally:
        model.generation_config = own
    new_tokens: list[list[int]] = output[:, width:].tolist()
    return new_tokens


class _Stops:
    """Which texts hold a stop string in what was generated of them; also a stopping criterion of ``transformers``.

    The class of the same purpose in ``transformers`` also matches across the end of the prompt, which would end an
    answer that begins with a line break after a prompt that ends with one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str], prompt_width: int = 0) -> None:
        self.tokenizer, self.stop, self.prompt_width = tokenizer, tuple(stop), prompt_width
        # A token is at least a byte of text; the slack is for special tokens and a cut character at the edge.
        self.tail = max((len(text.encode()) for text in stop), default=0) + 8

    def met(self, tokens: list[int]) -> bool:
        text = _plain(self.tokenizer, tokens[-self.tail :]) if self.stop else ""
        return any(s in text for s in self.stop)

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        rows = input_ids[:, self.prompt_width :].tolist()
        return torch.tensor([self.met(row) for row in rows], device=input_ids.device)


def _text(
    tokenizer: "PreTrainedTokenizerBase", tokens: list[int], ends: Sequence[int], stop: Sequence[str]
) -> tuple[str, bool]:
    """What a row says, and whether it ended: up to the first end token, decoded, up to the first stop string."""
    length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    text = _plain(tokenizer, tokens[:length])
    stops = [text.find(s) for s in stop if s in text]
    return text[: min(stops, default=len(text))], bool(stops) or length < len(tokens)


def _plain(tokenizer: "PreTrainedTokenizerBase", tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
