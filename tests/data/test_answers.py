"""The two answer rules, as tables."""

import pytest

from slamkern.data.answers import extract_answer, extract_answer_strict, is_correct


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0.0),
        ("no number here", 0.0),
        ("The answer is 18.", 18.0),
        ("16 - 3 - 4 = 9, and 9 * 2 = $18", 18.0),
        ("She earns $70,000 a year", 70000.0),
        ("1,234,567", 1234567.0),
        ("1,2,3", 3.0),  # one pass: 12,3, whose last number is 3
        ("12.50", 12.5),
        ("-5", 5.0),  # the rule has no signs
        ("3/4", 4.0),
        ("1.234,5", 1.2345),
        ("১৮", 18.0),
        ("The answer is 5. I checked it 2 times", 2.0),
    ],
)
def test_rule_of_mathoctopus_and_qalign(text, number):
    assert extract_answer(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("no number", None),
        ("x = -5", -5.0),
        ("−5 degrees", -5.0),
        ("-$5.50", -5.5),
        ("10-3", 3.0),
        ("- 5 apples", 5.0),  # a list item
        ("covid-19", 19.0),
        ("3/4 of it", 0.75),
        ("½", 0.5),
        ("2½ hours", 2.5),
        ("2 1/2 hours", 2.5),
        (r"\frac{3}{4}", 0.75),
        ("7 and 5/0", 7.0),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1.234.567", 1234567.0),
        ("1,00,000", 100000.0),
        ("1 234", 1234.0),
        ("1\u202f234\u202f567,25", 1234567.25),
        ("in 2020 300 people", 300.0),
        ("3,5 Liter", 3.5),
        ("0,125", 0.125),
        ("70,000", 70000.0),
        (".5", 0.5),
        ("18.", 18.0),
        ("25%", 25.0),
        ("১৮টি", 18.0),
        ("๑๒ บาท", 12.0),
        ("١٬٢٣٤٫٥", 1234.5),
        ("１２３，４５６", 123456.0),
        ("5 m²", 5.0),
        ("So 9 * 2 = 18.\n#### 18\nTotal of 3 steps", 18.0),
        ("The answer is: $1,200. That took 3 steps", 1200.0),
        ("The answer is 3 + 4 = 7. It took 2 steps", 7.0),
        ("The answer is 4. No: the answer is 5, after 2 tries", 5.0),
        ("The answer is\n12", 12.0),
        ("We have 12. The answer is twelve", 12.0),
        (r"\boxed{42} after 3 steps", 42.0),
        ("Die Antwort ist 12 Euro in 3 Tagen", 12.0),
        ("答案是１８。共3步", 18.0),
        ("Ответ: 1 500 рублей за 2 дня", 1500.0),
    ],
)
def test_strict_rule(text, number):
    assert extract_answer_strict(text) == number


def test_a_point_groups_thousands_only_where_the_language_writes_so():
    assert extract_answer_strict("Gewinn: 80.000", "de") == 80000.0
    assert extract_answer_strict("3.14", "de") == 3.14
    assert extract_answer_strict("1.125 miles", "en") == 1.125
    assert extract_answer_strict("1.125 miles") == 1.125


def test_a_degenerate_output_of_endless_digits_is_a_wrong_answer_not_a_crash():
    for text in ("1" * 9000, "1/" + "3" * 9000, "9" * 9000 + "/" + "3" * 9000):
        assert not is_correct(extract_answer(text), 18.0)
        assert not is_correct(extract_answer_strict(text), 18.0)


def test_correct_is_within_a_thousandth():
    assert is_correct(18.0, 18.0) and is_correct(18.0009, 18.0)
    assert not is_correct(18.0011, 18.0)
    assert not is_correct(None, 0.0)
