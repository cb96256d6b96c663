"""Tokens of many pairs are made once, are read back as they were, and take no more memory the longer they are read."""

import logging
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from slamkern.data import arrow_table, tokenization
from slamkern.data.pairs import Pair
from slamkern.data.prompts import get_prompt
from slamkern.data.tokenization import tokenize_pairs

PAIRS = [Pair(f"{i} Kisten" + "!" * (i % 7), f"{i} crates", "de" if i % 3 else "fr") for i in range(2500)]
PROMPT = get_prompt("Say: {instruction}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables of more than 2,000 rows go."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    for module in (arrow_table, tokenization):
        monkeypatch.setattr(module, "IN_MEMORY", 2000)
    return tmp_path / "slamkern"


def files(cache):
    return sorted(path.name for path in cache.glob("*.arrow"))


def test_a_file_holds_the_examples_that_memory_holds(tiny_tokenizer, cache, monkeypatch):
    few = [tokenize_pairs(PAIRS[first : first + 500], tiny_tokenizer, PROMPT) for first in range(0, 2500, 500)]
    expected = [example for part in few for example in part]
    assert not files(cache)
    monkeypatch.setattr(arrow_table, "RELEASE", 7)  # pages given back while they are in use
    every = tokenize_pairs(PAIRS, tiny_tokenizer, PROMPT)
    assert len(files(cache)) == 1
    assert every == expected and every[-1] == expected[-1] and every[998:1002] == expected[998:1002]
    assert every.lengths.tolist() == [len(example.input_ids) for example in expected]
    assert every.supervised.tolist() == [sum(label != -100 for label in example.labels[1:]) for example in expected]

    limit = len(expected[0].input_ids) + 3
    cut = tokenize_pairs(PAIRS, tiny_tokenizer, PROMPT, max_length=limit)
    assert cut == [example for example in expected if len(example.input_ids) <= limit]
    assert cut.dropped.total() == len(expected) - len(cut) > 0 and set(cut.dropped) == {"de", "fr"}
    assert cut.digest == every.digest and len(files(cache)) == 1  # lengths are chosen when the table is read


def test_pairs_are_tokenized_once_and_again_when_anything_differs(tiny_tokenizer, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    before = tokenize_pairs(PAIRS, tiny_tokenizer, PROMPT)
    encode = tokenization._encode
    monkeypatch.setattr(tokenization, "_encode", lambda *_: pytest.fail("tokenized twice"))
    assert tokenize_pairs(list(PAIRS), deepcopy(tiny_tokenizer), PROMPT).digest == before.digest
    monkeypatch.setattr(tokenization, "_encode", encode)

    other = deepcopy(tiny_tokenizer)
    other.eos_token = "<s>"
    changed = [replace(PAIRS[0], target="none"), *PAIRS[1:]]
    for arguments in [(PAIRS, other, PROMPT), (changed, tiny_tokenizer, PROMPT),
                      (PAIRS, tiny_tokenizer, get_prompt("Tell: {instruction}"))]:  # fmt: skip
        count = len(files(cache))
        assert tokenize_pairs(*arguments).digest != before.digest
        assert len(files(cache)) == count + 1


@pytest.mark.parametrize("damage", ["flip", "cut", "no record"])
def test_a_damaged_file_is_made_again(tiny_tokenizer, cache, caplog, damage):
    before = tokenize_pairs(PAIRS, tiny_tokenizer, PROMPT)
    path = cache / files(cache)[0]
    content = bytearray(path.read_bytes())
    if damage == "no record":
        path.with_suffix(".json").unlink()
    else:
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    after = tokenize_pairs(PAIRS, tiny_tokenizer, PROMPT)
    assert after == before and after.digest == before.digest
    assert re.search(r"tokens-\w+\.arrow is damaged; the pairs are tokenized again", caplog.text)
