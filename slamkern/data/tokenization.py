"""From texts and pairs to token sequences: which tokens are read, learned, and counted as which language."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from slamkern.data.packing import IGNORE, Example
from slamkern.data.pairs import Pair
from slamkern.data.prompts import Prompt, encode_prompts
from slamkern.errors import SlamkernError

_log = logging.getLogger(__name__)


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt, *, max_length: int = 1024
) -> tuple[list[Example], Counter[str]]:
    """Examples in the order of ``pairs``, and how many pairs of each language were dropped as longer than max_length.

    Prompt and response are tokenized apart and their ids joined. Tokenized as one text, a merge could straddle the
    border: the first response token would then carry part of the prompt, the label mask would be off by that piece,
    and the prompt's ids would differ from those that generation starts from. The response ends with EOS, which is
    learned.
    """
    if tokenizer.eos_token_id is None:
        raise SlamkernError("the tokenizer has no EOS token, so a response would have no end; set tokenizer.eos_token")
    texts = [prompt.translation(pair) for pair in pairs]
    prompts = encode_prompts([text for text, _ in texts], tokenizer)
    responses = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"] if texts else []

    examples = []
    dropped: Counter[str] = Counter()
    for pair, before, after in zip(pairs, prompts, responses, strict=True):
        after = [*after, tokenizer.eos_token_id]
        if len(before) + len(after) > max_length:
            dropped[pair.source_language] += 1
            continue
        examples.append(Example((*before, *after), (*[IGNORE] * len(before), *after)))
    if not examples:
        raise SlamkernError(f"none of the {len(pairs)} pairs fits into max_length={max_length} tokens")
    return examples, dropped


def tokenize_texts(
    texts: Mapping[str, Sequence[str]], tokenizer: Any, *, max_length: int, groups: int = 0
) -> list[Example]:
    """Examples without labels, whose language ids are the indices of the languages of ``texts``, -1 at special tokens.

    Text ``i`` of a language belongs to question group ``i % groups``. A text longer than ``max_length`` tokens is cut
    there, and how many were is logged; one without tokens is left out.
    """
    examples = []
    cut = 0
    for index, questions in enumerate(texts.values()):
        for number, text in enumerate(questions):
            encoded = tokenizer(text, return_special_tokens_mask=True)
            cut += len(encoded["input_ids"]) > max_length
            ids = tuple(encoded["input_ids"][:max_length])
            languages = tuple(-1 if special else index for special in encoded["special_tokens_mask"][:max_length])
            if ids:
                examples.append(Example(ids, (IGNORE,) * len(ids), languages, number % max(1, groups)))
    if cut:
        _log.warning("%d texts are longer than %d tokens and are cut there", cut, max_length)
    return examples


def render_sample(example: Example, tokenizer: Any) -> str:
    """The example as text for a person to check: what is only read, and what is learned, with token counts."""
    parts = []
    tokens = zip(example.input_ids, example.labels, strict=True)
    for learned, run in groupby(tokens, key=lambda item: item[1] != IGNORE):
        ids = [token for token, _ in run]
        heading = "learned" if learned else "read, no loss"
        parts.append(f"[{heading}: {len(ids)} tokens]\n{tokenizer.decode(ids, skip_special_tokens=False)}")
    return "\n".join(parts)
