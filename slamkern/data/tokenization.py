"""From texts and pairs to token sequences: which tokens are read, learned, and counted as which language."""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from slamkern.data.arrow_table import BATCH, IN_MEMORY, ArrowTable
from slamkern.data.packing import IGNORE, Example
from slamkern.data.pairs import Pair
from slamkern.data.prompts import Prompt, encode_prompts
from slamkern.data.token_table import SCHEMA, TokenTable, cached_table, token_batch
from slamkern.errors import SlamkernError
from slamkern.version import installed_version

_log = logging.getLogger(__name__)


def tokenize_pairs(pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt, *, max_length: int = 1024) -> TokenTable:
    """Examples in the order of ``pairs``, without those longer than max_length tokens, which the table counts.

    Prompt and response are tokenized apart and their ids joined. Tokenized as one text, a merge could straddle the
    border: the first response token would then carry part of the prompt, the label mask would be off by that piece,
    and the prompt's ids would differ from those that generation starts from. The response ends with EOS, which is
    learned.

    More than ``IN_MEMORY`` pairs are kept on disk for the next run with the same pairs, tokenizer and prompt.
    """
    _require_end(tokenizer)

    def batches() -> Iterator[pa.RecordBatch]:
        return _encoded(pairs, tokenizer, prompt)

    if len(pairs) > IN_MEMORY and hasattr(tokenizer, "save_pretrained"):  # what is none of transformers has no identity
        examples = cached_table(_key(pairs, tokenizer, prompt), batches, max_length)
    else:
        examples = TokenTable(ArrowTable.collect(batches(), SCHEMA), max_length)
    if not examples:
        raise _too_long(pairs, max_length)
    return examples


def check_some_fit(pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt, *, max_length: int) -> None:
    """What :func:`tokenize_pairs` refuses, found out by reading no further than to the first example that fits."""
    _require_end(tokenizer)
    for batch in _encoded(pairs, tokenizer, prompt):
        if TokenTable(ArrowTable([batch]), max_length):
            return
    raise _too_long(pairs, max_length)


def _require_end(tokenizer: Any) -> None:
    if tokenizer.eos_token_id is None:
        raise SlamkernError("the tokenizer has no EOS token, so a response would have no end; set tokenizer.eos_token")


def _too_long(pairs: Sequence[Pair], max_length: int) -> SlamkernError:
    return SlamkernError(f"none of the {len(pairs)} pairs fits into max_length={max_length} tokens")


def _encoded(pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt) -> Iterator[pa.RecordBatch]:
    rows = iter(pairs)
    while chosen := list(islice(rows, BATCH)):
        yield _encode(chosen, tokenizer, prompt)


def _encode(pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt) -> pa.RecordBatch:
    texts = [prompt.translation(pair) for pair in pairs]
    prompts = encode_prompts([text for text, _ in texts], tokenizer)
    responses = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    ids = [[*before, *after, tokenizer.eos_token_id] for before, after in zip(prompts, responses, strict=True)]
    return token_batch(ids, [len(before) for before in prompts], [pair.source_language for pair in pairs])


def _key(pairs: Sequence[Pair], tokenizer: Any, prompt: Prompt) -> str:
    """A name for the tokens of ``pairs``: a hash of everything that they follow from."""
    digest = hashlib.sha256()
    # What a template makes of a pair, beside the template itself: some write the date into it.
    for value in (prompt, prompt.translation(pairs[0]), type(tokenizer), tokenizer.eos_token_id):
        digest.update(repr(value).encode())
    digest.update(str([installed_version(name) for name in ("tokenizers", "transformers")]).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    for pair in pairs:
        digest.update(repr((pair.source, pair.target, pair.source_language, pair.target_language, pair.kind)).encode())
    return digest.hexdigest()[:32]


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
