"""The language of a response: its script first, py3langid for scripts that languages share."""

import sys

import pytest

from slamkern.data import synthetic
from slamkern.data.languages import LANGUAGES
from slamkern.errors import SlamkernError
from slamkern.evaluation import response_language as module
from slamkern.evaluation.response_language import response_language


@pytest.mark.parametrize("code", synthetic.LANGUAGES)
def test_every_language_of_the_corpus_is_told(code):
    pytest.importorskip("py3langid")
    problems = synthetic.generate(40, 0, [code], "test")
    told = [response_language(problem.questions[code]) for problem in problems]
    assert told.count(code) >= 39


def test_every_language_of_ours_is_within_reach():
    shared = {code for codes in module._SHARED.values() for code in codes.split()}
    assert shared | set(module._SCRIPTS.values()) == set(LANGUAGES)
    langid = pytest.importorskip("py3langid.langid")
    assert shared <= set(langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE).labels)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 3 * 4 = 12", "unknown"),
        ("เหลือไข่ทั้งหมดสิบสามฟอง: 16 - 3 = 13 eggs", "th"),  # most of the letters decide
        ("彼女は毎朝3つの卵を食べます。答えは18です。", "ja"),
        ("珍妮特的鸭子每天下16颗蛋,她早上吃三颗。", "zh"),
        ("卵は残り十三個。だから答えは十八。", "ja"),
        ("Сегодня у нас 18 яблок и груш", "ru"),
    ],
)
def test_script_and_identifier(text, code):
    if code == "ru":
        pytest.importorskip("py3langid")
    assert response_language(text) == code


def test_without_the_identifier_only_shared_scripts_are_refused(monkeypatch):
    module._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert response_language("প্রতিদিন কতগুলি ডিম পাওয়া যায়") == "bn"
    with pytest.raises(SlamkernError, match=r"Latin script .*slamkern\[gate\]"):
        response_language("How many eggs are there every day?")
    module._identifier.cache_clear()
