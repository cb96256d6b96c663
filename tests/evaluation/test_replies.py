"""The model's own replies: unfinished ones are dropped, a stopped run goes on, other settings are refused."""

import json

import pytest
from support.tiny_causal_lm import ending_model, tiny_model, tiny_tokenizer

from slamkern.data.prompts import Prompt
from slamkern.errors import SlamkernError
from slamkern.evaluation import replies
from slamkern.evaluation.generation import generate

PROMPT = Prompt("plain", "{instruction}")
QUESTIONS = [f"How many apples are {n}?" for n in range(6)]


@pytest.fixture(scope="module")
def model():
    return ending_model()


def ask(model, path, **options):
    return replies.own_replies(
        model, tiny_tokenizer(), QUESTIONS, PROMPT, path, progress=False, **{"max_new_tokens": 16} | options
    )


def test_only_replies_that_end_are_used(model, tmp_path):
    found = ask(model, tmp_path / "replies.json")
    texts = generate(model, tiny_tokenizer(), QUESTIONS, max_new_tokens=16)
    ended = {QUESTIONS[index]: text.strip() for index, text, end in texts if end and text.strip()}
    assert found == ended and 0 < len(found) < len(QUESTIONS)
    assert replies.count_unfinished(tmp_path / "replies.json") == len(QUESTIONS) - len(found)
    assert not (tmp_path / "replies.jsonl").exists()


def test_a_stopped_run_goes_on_and_a_finished_one_is_read(model, tmp_path, monkeypatch):
    whole = ask(model, tmp_path / "whole.json")
    asked = []

    def stopping(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        for number, row in enumerate(generate(model, tokenizer, prompts, **options)):
            if len(asked) == 1 and number == 2:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(replies, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        ask(model, tmp_path / "replies.json")
    with (tmp_path / "replies.jsonl").open("a") as torn:
        torn.write('{"question": "How ma')
    assert ask(model, tmp_path / "replies.json") == whole
    assert ask(model, tmp_path / "replies.json") == whole
    assert asked == [6, 4]
    rows = json.loads((tmp_path / "replies.json").read_text())["replies"]
    assert [row["question"] for row in rows] == QUESTIONS


def test_replies_of_something_else_are_refused(model, tmp_path):
    ask(model, tmp_path / "replies.json")
    with pytest.raises(SlamkernError, match="max_new_tokens was 16, now 17"):
        ask(model, tmp_path / "replies.json", max_new_tokens=17)
    with pytest.raises(SlamkernError, match="weights was"):
        ask(tiny_model(seed=1), tmp_path / "replies.json")


def test_no_finished_reply_is_an_error(tmp_path):
    with pytest.raises(SlamkernError, match="none of the 6 replies"):
        ask(tiny_model(), tmp_path / "replies.json", max_new_tokens=1)
