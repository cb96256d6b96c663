"""How responses changed, on texts whose fault is plain to see."""

import pytest

from slamkern.evaluation.drift import measure_drift, repeated_share
from slamkern.evaluation.recorded import Answer


def answer(output, truncated=None):
    return Answer("1", "de", "Wie viele Eier sind es am Ende?", "18", output, False, truncated=truncated)


def test_each_kind_of_drift_is_counted():
    pytest.importorskip("py3langid")
    german = "Es sind am Ende noch achtzehn Eier uebrig."
    after = [
        "There are eighteen eggs left at the end of the day.",
        "",
        "so 18 and " * 30,
        "Wie viele Eier sind es am Ende? Es sind achtzehn Eier.",
    ]
    first, last = measure_drift("de", [(answer(german, False), answer(text, len(text) > 200)) for text in after])
    assert first.languages == {"de": 100.0} and first.english == first.empty == first.repetitive == 0.0
    assert last.languages["unknown"] == 25.0 and last.same_language == 25.0 and last.english == 50.0
    assert (last.empty, last.repetitive, last.echo, last.truncated) == (25.0, 25.0, 25.0, 25.0)
    assert first.characters == len(german)


def test_repetition_is_seen_in_any_script_and_not_in_ordinary_text():
    assert repeated_share("ดังนั้นคำตอบคือ 18 " * 20) > 0.9
    assert repeated_share("答案是18。" * 20) > 0.9
    assert (
        repeated_share("Janet eats 3 of her 16 eggs and bakes with 4; she sells the other 9 for 2 dollars each.") < 0.1
    )
    assert repeated_share("18") == repeated_share("") == 0.0


def test_truncation_is_told_only_where_it_is_recorded_for_all():
    known, unknown = answer("x", True), answer("x")
    assert measure_drift("de", [(known, known), (unknown, known)])[0].truncated is None
