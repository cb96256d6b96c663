"""Chat templates of strangers: tried out within limits, and used only where they ask the question."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.tiny_causal_lm import tiny_tokenizer

from slamkern.data import chat_template
from slamkern.data.prompts import get_prompt
from slamkern.errors import SlamkernError

ASK = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_asks_the_question() -> None:
    assert get_prompt("chat", with_template(ASK)).question("3 + 4?", "de") == "user: 3 + 4?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ASK + "{{ 'x' * 200000 }}", "makes 200,0.. characters or more"),
        ("hello", "leaves out the question"),
        ("{% if %}", "cannot be used .the chat template fails: TemplateSyntaxError"),
        ("{{ raise_exception('no users') }}", "TemplateError: no users"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError|leaves out"),
        ("{{ messages[0].content.nothing.nothing }}", "UndefinedError"),
    ],
)
def test_templates_that_are_refused(template: str, message: str) -> None:
    with pytest.raises(SlamkernError, match=message) as caught:
        get_prompt("chat", with_template(template))
    assert "\n" not in str(caught.value)


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """TimeoutError where the block takes longer, so that a limit that is gone does not stop all tests."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_template_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with alarm(30), pytest.raises(SlamkernError, match="takes more than 1 s or 1,024 MiB"):
        get_prompt("chat", with_template(ASK + endless))


@pytest.mark.parametrize("much", ["{{ 'x' * (4 * 10**8) }}", "{{ '%400000000d' % 1 }}"])
def test_a_template_that_takes_memory_is_stopped(much: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few enough bytes that a machine has them, and long enough that time is not what stops it."""
    monkeypatch.setattr(chat_template, "SECONDS", 100)
    monkeypatch.setattr(chat_template, "MEMORY", 2**27)
    with alarm(120), pytest.raises(SlamkernError, match="takes more than 100 s or 128 MiB"):
        get_prompt("chat", with_template(ASK + much))


def test_a_template_that_fails_later_is_one_line() -> None:
    template = ASK + "{% if '7' not in messages[0].content %}{{ raise_exception('only sevens') }}{% endif %}"
    prompt = get_prompt("chat", with_template(template))
    with pytest.raises(SlamkernError, match="the chat template fails: TemplateError: only sevens"):
        prompt.question("3 + 4?", "de")
