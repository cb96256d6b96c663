"""Scores from predictions alone: both rules, published interval values, tables, comparisons."""

import json

import pytest

from slamkern.errors import SlamkernError
from slamkern.evaluation.scoring import (
    EvaluationResult,
    average_interval,
    format_table,
    score,
    summarize,
    wilson_interval,
)
from slamkern.files import write_checked
from slamkern.schemas.predictions import Prediction

# gold, output, correct under the standard rule, correct under the strict rule
CASES = [
    ("18", "16 - 7 = 9, and 9 * 2 = 18", True, True),
    ("80,000", "It is 80,000 dollars.", True, True),
    ("18", "there is no number", False, False),
    ("0", "there is no number", True, False),  # no number counts as 0 under the standard rule only
    ("5", "The answer is -5.", True, False),  # the standard rule does not see signs
    ("80000", "Das Haus kostet 80.000 Dollar.", False, True),  # a point between thousands, as German writes
    ("7", "The answer is 8", False, False),
]


def prediction(number, language="de", gold="1", output="1"):
    # `prediction` and `correct` are nonsense on purpose: scores must not read them.
    return Prediction(f"{language}-{number}", language, "?", gold, output, -1.0, False)


def result(languages, **overrides):
    rows = [
        prediction(i, code, output="1" if right else "2")
        for code, rights in languages.items()
        for i, right in enumerate(rights)
    ]
    return summarize(rows, **{"task": "mgsm", "model": "tiny", "prompt": "metamath", "max_new_tokens": 8, **overrides})


@pytest.mark.parametrize(("gold", "output", "standard", "strict"), CASES)
def test_both_rules_judge_output_and_gold_anew(gold, output, standard, strict):
    scores = summarize([prediction(0, gold=gold, output=output)], task="mgsm", model="m", prompt="p", max_new_tokens=8)
    assert scores.accuracy == {"de": 100.0 * standard} and scores.strict == {"de": 100.0 * strict}


def test_the_average_is_over_languages_not_over_questions():
    scores = result({"de": [1, 1, 1, 0], "th": [0]})
    assert scores.accuracy == {"de": 75.0, "th": 0.0}
    assert scores.average == 37.5 and scores.n == {"de": 4, "th": 1}


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score, without continuity correction).
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_interval_matches_published_values(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=0.006)


def test_average_interval_of_one_language_is_its_own_and_of_many_shrinks():
    one = wilson_interval(3, 10)
    assert average_interval({"de": 30.0}, {"de": one}) == pytest.approx(one)
    codes = ["de", "fr", "es", "ru"]
    low, high = average_interval(dict.fromkeys(codes, 30.0), dict.fromkeys(codes, one))
    assert (30.0 - low, high - 30.0) == pytest.approx(((30.0 - one[0]) / 2, (one[1] - 30.0) / 2))


def test_result_survives_json():
    scores = result({"de": [1, 0], "th": [1, 1]})
    assert EvaluationResult.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    with pytest.raises(SlamkernError, match="average"):
        EvaluationResult.from_dict({k: v for k, v in scores.to_dict().items() if k != "average"})


def test_table_shows_model_prompt_rule_and_every_language():
    scores = result({"de": [1, 0], "th": [1, 1]})
    table = format_table(scores)
    assert all(part in table for part in ("mgsm", "tiny", "metamath", scores.rule, "\nde ", "\nth ", "75.0"))


def test_score_reads_a_file_alone_and_refuses_an_empty_one(tmp_path):
    path = tmp_path / "predictions.jsonl"
    line = {"id": "a", "language": "sw", "question": "?", "gold": "1", "output": "1", "prediction": 9, "correct": False}
    path.write_text(json.dumps(line) + "\n")
    scores = score(path)
    assert scores.accuracy == {"sw": 100.0} and scores.prompt == scores.task == "unknown"
    write_checked(
        tmp_path / "evaluation.json",
        {"kind": "evaluation", "settings": {"task": "mgsm", "prompt": "chat"}, "model": "m"},
    )
    assert (score(path).task, score(path).prompt, score(path).model) == ("mgsm", "chat", "m")
    path.write_text("")
    with pytest.raises(SlamkernError, match="holds no predictions"):
        score(path)
    path.write_text(json.dumps(line | {"gold": "none"}) + "\n")
    with pytest.raises(SlamkernError, match="question 'a' has no number in its gold answer 'none'"):
        score(path)
