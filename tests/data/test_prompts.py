"""Prompts word by word, and their ids with BOS exactly once."""

from copy import deepcopy

import pytest

from slamkern.data.pairs import Pair
from slamkern.data.prompts import encode_prompts, get_prompt
from slamkern.errors import SlamkernError

PAIR = Pair("Wie viele?", "How many?", "de")
INSTRUCTION = "Translate the following sentences from German to English. Wie viele?"
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request"


@pytest.mark.parametrize(
    ("name", "translation", "question"),
    [
        (
            "alpaca",
            f"{TASK}.\n\n### Instruction:\n{INSTRUCTION}\n\n### Response:",
            f"{TASK}.\n\n### Instruction:\nWie viele?\n\n### Response:",
        ),
        (
            "metamath",
            f"{TASK}.\n\n### Instruction:\n{INSTRUCTION}\n\n### Response:",
            f"{TASK}.\n\n### Instruction:\nWie viele?\n\n### Response: Let's think step by step.",
        ),
        (
            "mathoctopus",
            f"{TASK} in English. Please answer in English.\n\n### Instruction:\n{INSTRUCTION}\n\n### Response:",
            f"{TASK} in German. Please answer in German.\n\n### Instruction:\nWie viele?\n\n### Response:",
        ),
        ("authors", f"Human: {INSTRUCTION}\nAssistant: ", "Human: Wie viele?\nAssistant: "),
        ("Q[{language}]: {instruction} A:", f"Q[English]: {INSTRUCTION} A:", "Q[German]: Wie viele? A:"),
    ],
)
def test_presets_are_the_published_prompts_to_the_letter(name, translation, question):
    prompt = get_prompt(name)
    assert prompt.translation(PAIR) == (translation, "How many?")
    assert prompt.question("Wie viele?", "de") == question


def test_braces_in_a_text_are_text():
    question = "What is {instruction} in {language}, {0}?"
    assert get_prompt("authors").question(question, "en") == f"Human: {question}\nAssistant: "
    assert get_prompt("mathoctopus").question(question, "en").count(question) == 1


def test_a_template_file_is_read_without_its_last_newline(tmp_path):
    (tmp_path / "mine.txt").write_text("Frage: {instruction}\nAntwort:\n", encoding="utf-8")
    prompt = get_prompt(str(tmp_path / "mine.txt"))
    assert (prompt.name, prompt.question("1+1?", "de")) == ("mine", "Frage: 1+1?\nAntwort:")


def test_bad_specifications(tmp_path, tiny_tokenizer):
    (tmp_path / "empty.txt").write_text("no place for it")
    for spec, message in [
        ("alpacca", "did you mean 'alpaca'"),
        (str(tmp_path / "absent.txt"), "neither a preset, an existing file"),
        (str(tmp_path / "empty.txt"), "does not contain {instruction}"),
        ("chat", "needs the tokenizer"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            get_prompt(spec)
    with pytest.raises(SlamkernError, match="has no chat template"):
        get_prompt("chat", tiny_tokenizer)
    with pytest.raises(SlamkernError, match="unknown language 'xx'"):
        get_prompt("alpaca").question("?", "xx")


def opening_and_closing(tokenizer):
    from tokenizers.processors import TemplateProcessing

    special = [("<s>", 1), ("</s>", 2)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return tokenizer


def test_the_prompt_has_the_opening_tokens_once_and_no_end(tiny_tokenizer):
    """A tokenizer that adds BOS and EOS, and a chat template that writes BOS as well."""
    tokenizer = opening_and_closing(deepcopy(tiny_tokenizer))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    prompt = get_prompt("chat", tokenizer)
    text = prompt.question("2?", "en")
    assert text == "<s>[2?]>"
    assert encode_prompts([text], tokenizer) == encode_prompts(["[2?]>"], tokenizer)
    ids = encode_prompts([text], tokenizer)[0]
    assert ids.count(1) == 1 and ids[0] == 1 and 2 not in ids
    assert tokenizer.decode(ids[1:]).replace(" ", "") == "[2?]>"


def test_a_tokenizer_without_opening_tokens_gets_none(tiny_tokenizer):
    assert 1 not in encode_prompts(["12"], tiny_tokenizer)[0]
    assert encode_prompts([], tiny_tokenizer) == []


def test_a_prompt_file_that_is_not_utf8_is_one_line(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("Übersetze: {instruction}".encode("latin-1"))
    with pytest.raises(SlamkernError, match=r"prompt\.txt is not UTF-8 text \(byte 0\)$"):
        get_prompt(str(path))
