"""Texts and pairs as token sequences: what is read, learned, and counted as which language."""

from copy import deepcopy

import pytest

from slamkern.data.packing import IGNORE
from slamkern.data.pairs import Pair
from slamkern.data.prompts import encode_prompts, get_prompt
from slamkern.data.tokenization import render_sample, tokenize_pairs, tokenize_texts
from slamkern.errors import SlamkernError

PAIRS = [Pair("Wie viele?", "How many?", "de"), Pair("Combien de pommes?", "How many apples?", "fr")]


def test_labels_are_the_response_and_eos_and_nothing_else(tiny_tokenizer):
    tokenizer, prompt = tiny_tokenizer, get_prompt("authors")
    examples = tokenize_pairs(PAIRS, tokenizer, prompt)
    assert not examples.dropped
    for row, pair in zip(examples, PAIRS, strict=True):
        text, response = prompt.translation(pair)
        before = encode_prompts([text], tokenizer)[0]
        assert list(row.input_ids[: len(before)]) == before
        assert set(row.labels[: len(before)]) == {IGNORE}
        after = row.labels[len(before) :]
        assert after == row.input_ids[len(before) :]
        assert tokenizer.convert_ids_to_tokens(after[:-1]) == list(response) and after[-1] == tokenizer.eos_token_id


def test_over_long_pairs_are_dropped_and_counted_by_language(tiny_tokenizer):
    tokenizer, prompt = tiny_tokenizer, get_prompt("authors")
    rows = tokenize_pairs(PAIRS, tokenizer, prompt)
    length = len(rows[0].input_ids)
    kept = tokenize_pairs(PAIRS, tokenizer, prompt, max_length=length)
    assert kept == rows[:1] and kept.dropped == {"fr": 1}
    with pytest.raises(SlamkernError, match="none of the 2 pairs fits into max_length=5"):
        tokenize_pairs(PAIRS, tokenizer, prompt, max_length=5)


def test_tokenizing_refuses_what_cannot_be_learned(tiny_tokenizer):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(SlamkernError, match="no EOS"):
        tokenize_pairs(PAIRS, tokenizer, get_prompt("authors"))


def test_a_sample_shows_what_is_read_and_what_is_learned(tiny_tokenizer):
    tokenizer = tiny_tokenizer
    row = tokenize_pairs(PAIRS, tokenizer, get_prompt("authors"))[0]
    read, learned = render_sample(row, tokenizer).split("[learned")
    assert read.startswith("[read, no loss: ") and "Wieviele?" in read.replace(" ", "")  # one token a character
    assert f": {len('How many?') + 1} tokens]" in learned and learned.endswith("</s>")


def test_texts_know_their_language_and_their_group_and_are_cut(tiny_tokenizer, caplog):
    examples = tokenize_texts({"en": ["abc", "", "defgh"], "de": ["x"]}, tiny_tokenizer, max_length=4, groups=2)
    assert [row.language_ids for row in examples] == [(0, 0, 0), (0, 0, 0, 0), (1,)]
    assert [row.group for row in examples] == [0, 0, 0]
    assert {label for row in examples for label in row.labels} == {IGNORE}
    assert "1 texts are longer than 4 tokens" in caplog.text
