"""What alignment did to the language model itself: translation into English, and English text kept.

Losses are means over supervised tokens in nats: the sum over all tokens divided by their number, so they do not depend
on how sequences are batched: they are the held-out losses of training (``training.batches.mean_loss``). chrF is that
of sacrebleu (Popovic 2015; character 6-grams, beta 2) over greedy translations, from 0 to 100.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slamkern import distributed
from slamkern.data.packing import IGNORE, Example
from slamkern.data.pairs import Pair
from slamkern.data.prompts import Prompt, encode_prompts, get_prompt
from slamkern.errors import SlamkernError
from slamkern.evaluation.generation import generate
from slamkern.progress import progress_bar
from slamkern.training.batches import context_of, mean_loss, tokenize_within

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def translation_quality(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[Pair],
    prompt: str | Prompt = "alpaca",
    *,
    generate_limit: int = 16,
    max_new_tokens: int = 256,
    max_length: int = 1024,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Quality of held-out translations per source language: ``{"de": {"loss": ..., "chrf": ...}, ...}``.

    ``loss`` is the mean over the response tokens (EOS included) of all pairs of at most ``max_length`` tokens that the
    model's context holds; ``chrf`` compares greedy translations of the first ``generate_limit`` pairs of each language
    with their targets, passing over pairs whose prompt is longer than ``max_length``, and is left out where
    ``generate_limit`` is 0. Give the same pairs before and after training: targets of different pairs are not equally
    hard.

    Raises SlamkernError for no pairs, for a language whose pairs are all too long, and, when chrF is asked for, where
    sacrebleu is not installed.
    """
    if not pairs:
        raise SlamkernError("no held-out pairs to measure translation on")
    chrf = _corpus_chrf() if generate_limit > 0 else None
    prompt = get_prompt(prompt, tokenizer) if isinstance(prompt, str) else prompt
    languages = list(dict.fromkeys(pair.source_language for pair in pairs))
    quality: dict[str, dict[str, float]] = {}
    for code in languages:
        chosen = [pair for pair in pairs if pair.source_language == code]
        examples = tokenize_within(chosen, tokenizer, prompt, max_length, context_of(model))
        quality[code] = {"loss": mean_loss(model, examples, tokens_per_batch=batch_tokens)}
    if chrf is None:
        return quality
    # All languages in one pass: the batches are fuller and the longest prompts of all come first.
    asked = asked_pairs(pairs, tokenizer, prompt, generate_limit, max_length=max_length)
    texts = generate(
        model, tokenizer, [prompt.translation(pair)[0] for pair in asked], max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens, names=[f"{pair.source_language}: {pair.source[:40]!r}" for pair in asked],
    )  # fmt: skip
    bar = progress_bar(texts, total=len(asked), desc="translate", unit="text", show=progress)
    outputs = {position: text.strip() for position, text, _ in bar}
    outputs = distributed.on_main(lambda: outputs)
    for code in languages:
        rows = [row for row, pair in enumerate(asked) if pair.source_language == code]
        references = [asked[row].target.strip() for row in rows]
        quality[code]["chrf"] = float(chrf([outputs[row] for row in rows], [references]).score)
    return quality


def asked_pairs(
    pairs: Sequence[Pair], tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, limit: int, *, max_length: int
) -> list[Pair]:
    """The pairs that are translated for chrF: the first ``limit`` of each language whose prompts are not too long."""
    rows = encode_prompts([prompt.translation(pair)[0] for pair in pairs], tokenizer)
    fits = [pair for pair, row in zip(pairs, rows, strict=True) if len(row) <= max_length]
    codes = dict.fromkeys(pair.source_language for pair in pairs)
    return [pair for code in codes for pair in [p for p in fits if p.source_language == code][:limit]]


def english_retention(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_length: int = 1024,
    batch_tokens: int = 8192,
) -> float:
    """Mean loss per token of a model on English texts; compare it before and after training.

    Every token counts except the first of each sequence, which has nothing before it (BOS where the tokenizer adds
    one, otherwise the first token of the text). Texts are cut at ``max_length`` tokens, or where the model's context
    ends.
    """
    limit = min(max_length, context_of(model) or max_length)
    rows = [row[:limit] for row in encode_prompts(list(texts), tokenizer)]
    examples = [Example(tuple(row), (IGNORE, *row[1:])) for row in rows if len(row) > 1]
    if not examples:
        raise SlamkernError(f"none of the {len(rows)} texts has two tokens: there is nothing to predict")
    return mean_loss(model, examples, tokens_per_batch=batch_tokens)


def _corpus_chrf() -> Any:
    try:
        from sacrebleu import corpus_chrf
    except ImportError:
        raise SlamkernError(
            "chrF needs sacrebleu (pip install sacrebleu); generate_limit=0 measures the losses alone"
        ) from None
    return corpus_chrf
