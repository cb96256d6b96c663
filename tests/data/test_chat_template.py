"""Chat templates of strangers: tried out within limits, and used only where they ask the question."""

import time
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
        (ASK + "{{ 'x' * 10**10 }}", "takes more than"),
        (ASK + "{{ '%2000000000d' % 1 }}", "takes more than"),
        (ASK + "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 2 s"),
        (ASK + "{{ 'x' * 200000 }}", "makes 200,0.. characters or more"),
        ("hello", "leaves out the question"),
        ("{% if %}", "cannot be used .the chat template fails: TemplateSyntaxError"),
        ("{{ raise_exception('no users') }}", "TemplateError: no users"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError|leaves out"),
        ("{{ messages[0].content.nothing.nothing }}", "UndefinedError"),
    ],
)
def test_templates_that_are_refused(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 2)
    started = time.monotonic()
    with pytest.raises(SlamkernError, match=message) as caught:
        get_prompt("chat", with_template(template))
    assert "\n" not in str(caught.value) and time.monotonic() - started < 60


def test_a_template_that_fails_later_is_one_line() -> None:
    template = ASK + "{% if '7' not in messages[0].content %}{{ raise_exception('only sevens') }}{% endif %}"
    prompt = get_prompt("chat", with_template(template))
    with pytest.raises(SlamkernError, match="the chat template fails: TemplateError: only sevens"):
        prompt.question("3 + 4?", "de")
