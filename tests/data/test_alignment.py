"""Training examples: each target has its prompt and its reply, languages come in turn."""

import logging

import pytest

from slamkern.data.alignment import aligned_examples, english_questions
from slamkern.data.pairs import Pair
from slamkern.errors import SlamkernError

PAIRS = [Pair(f"{code} {n}", f"english {n}", code) for code in ("de", "sw") for n in range(4)]
REPLIES = {f"english {n}": f"reply {n}" for n in range(2)}


def test_each_target_has_its_source_and_its_reply():
    translation, reply, both = (
        aligned_examples(PAIRS[:1], (target,), REPLIES)[0]
        for target in ("translation", "reply", "translation_then_reply")
    )
    assert translation == PAIRS[0]
    assert (reply.source, reply.target, reply.kind) == ("de 0", "reply 0", "response")
    assert (both.target, both.kind) == ("english 0\n\nreply 0", "response")


def test_without_a_limit_every_pair_comes_once_in_its_order():
    assert aligned_examples(PAIRS) == PAIRS
    assert [pair.source for pair in aligned_examples(PAIRS, ("reply",), REPLIES)] == ["de 0", "de 1", "sw 0", "sw 1"]


def test_with_a_limit_languages_come_in_turn_and_a_seed_draws():
    rows = [aligned_examples(PAIRS, limit=4, seed=seed) for seed in range(8)]
    assert all([pair.source_language for pair in row] == ["de", "sw", "de", "sw"] for row in rows)
    assert rows[0] == aligned_examples(PAIRS, limit=4, seed=0)
    assert len({tuple(row) for row in rows}) > 1


def test_several_targets_are_taken_in_turn_in_every_language():
    rows = aligned_examples(PAIRS, ("reply", "translation"), REPLIES, limit=4)
    assert [(pair.source_language, pair.kind) for pair in rows] == [
        ("de", "response"), ("sw", "response"), ("de", "question"), ("sw", "question"),
    ]  # fmt: skip


def test_replays_are_english_questions_with_their_replies(caplog):
    *_, again = aligned_examples(PAIRS, replies=REPLIES, replay=1 / 8)
    assert again.source in REPLIES and again.target == REPLIES[again.source]
    assert (again.source_language, again.kind) == ("en", "response")
    with caplog.at_level(logging.WARNING):
        assert len(aligned_examples(PAIRS, replies=REPLIES, replay=1, limit=9)) == 8 + 2
    assert "8 examples instead of 9" in caplog.text and "2 replies are replayed instead of 8" in caplog.text


def test_what_cannot_be_made_is_refused():
    with pytest.raises(SlamkernError, match="unknown target 'answer'"):
        aligned_examples(PAIRS, ("answer",))
    with pytest.raises(SlamkernError, match="none of the 8 pairs is a question whose English side has a reply"):
        aligned_examples(PAIRS, ("reply",), {"another": "reply"})


def test_english_questions_come_once():
    assert english_questions([*PAIRS, Pair("de", "solution", "de", kind="answer")], 3) == [
        f"english {n}" for n in range(3)
    ]
