"""The gate on constructed evaluations: every verdict, every refusal, and what it hands on."""

import json
from dataclasses import replace

import pytest

from slamkern.errors import SlamkernError
from slamkern.evaluation.compare import compare, decide
from slamkern.evaluation.scoring import summarize
from slamkern.files import write_checked
from slamkern.schemas.predictions import Prediction

SETTINGS = {
    "task": "mgsm", "weights": "0" * 64, "dtype": "float32", "prompt": "metamath",
    "prompt_example": "Q: <question>", "max_new_tokens": 8, "stop": [],
}  # fmt: skip


def write(folder, languages, settings=None, gold="1", question="what is {0}?", output="{0}", notes=None):
    """An evaluation folder; ``languages`` maps a code to right (1) and wrong (0) answers."""
    folder.mkdir()
    lines = []
    for code, rights in languages.items():
        for number, right in enumerate(rights):
            text = output.format(1 if right else 2)
            entry = Prediction(f"mgsm-{code}-{number}", code, question.format(number), gold, text, 9.0, False)
            lines.append(json.dumps(entry.__dict__) + "\n")
    (folder / "predictions.jsonl").write_text("".join(lines))
    write_checked(
        folder / "evaluation.json", {"kind": "evaluation", "settings": SETTINGS | (settings or {})} | (notes or {})
    )
    return folder


def flips(n, gained, lost):
    """Before and after of n questions, half of the unchanged ones right."""
    stay = n - gained - lost
    right = stay // 2
    before = [0] * gained + [1] * lost + [1] * right + [0] * (stay - right)
    return before, [1] * gained + [0] * lost + before[gained + lost :]


def gate(tmp_path, cases, **options):
    pairs = {code: flips(*case) for code, case in cases.items()}
    before = write(tmp_path / "before", {code: pair[0] for code, pair in pairs.items()})
    after = write(tmp_path / "after", {code: pair[1] for code, pair in pairs.items()}, {"weights": "1" * 64})
    return compare(before, after, drift=False, **options)


@pytest.mark.parametrize(
    ("case", "verdict", "status"),
    [
        ((400, 60, 10), "better", 0),
        ((1000, 10, 10), "not worse", 0),
        ((400, 10, 60), "worse", 1),
        ((1000, 2, 14), "not worse", 0),  # surely lower, but by less than the margin
        ((50, 3, 4), "cannot tell", 3),
        ((20, 0, 0), "cannot tell", 3),  # no change among 20 questions shows nothing
    ],
)
def test_verdict_and_status(tmp_path, case, verdict, status):
    result = gate(tmp_path, {"de": case})
    assert (result.languages["de"].verdict, result.verdict, result.exit_status) == (verdict, verdict, status)
    n, gained, lost = case
    change = result.languages["de"]
    assert (change.n, change.gained, change.lost) == case
    assert change.difference == pytest.approx(change.after - change.before)
    assert change.difference == pytest.approx(100 * (gained - lost) / n)
    assert len(result.lost) == lost and all(old.correct and not new.correct for old, new in result.lost)
    assert result.unverified == ()


def test_the_worst_language_decides_and_a_margin_of_its_own_can_change_that(tmp_path):
    cases = {"en": (1000, 10, 50), "de": (1000, 200, 20)}
    result = gate(tmp_path, cases)
    assert [row.verdict for row in result.languages.values()] == ["worse", "better"]
    assert result.average.verdict == "better" and result.exit_status == 1
    again = compare(tmp_path / "before", tmp_path / "after", margins={"en": 6}, drift=False)
    assert again.languages["en"].verdict == "not worse" and again.exit_status == 0
    assert again.languages["de"].margin == 2 and again.average.margin == 2


def test_holm_keeps_ten_languages_from_crying_wolf(tmp_path):
    unchanged = dict.fromkeys(["es", "fr", "ru", "zh", "ja", "th", "sw", "bn", "en"], (100, 5, 5))
    alone = gate(tmp_path, {"de": (100, 1, 9)}).languages["de"]
    (tmp_path / "ten").mkdir()
    among = gate(tmp_path / "ten", {"de": (100, 1, 9), **unchanged}).languages["de"]
    assert alone.interval[1] < 0 and alone.verdict == "worse"
    assert among.p_harm == alone.p_harm and among.p_harm_holm == pytest.approx(10 * alone.p_harm)
    assert among.verdict == "cannot tell"


def test_the_verdict_needs_interval_and_test():
    assert decide((0.5, 3.0), 2) == "better"
    assert decide((0.5, 3.0), 2, p_benefit=0.2) == "not worse"
    assert decide((-2.0, 3.0), 2) == "cannot tell"  # the bound itself is not within
    assert decide((-1.9, -0.1), 2) == "not worse"
    assert decide((-9.0, -0.1), 2) == "worse"
    assert decide((-9.0, -0.1), 2, p_harm=0.2) == "cannot tell"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "msvamp"),
        ("prompt", "alpaca"),
        ("prompt_example", "Q: <question> A:"),  # the chat template changed
        ("stop", ["\n"]),
        ("max_new_tokens", 9),
        ("dtype", "bfloat16"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, name, value):
    before = write(tmp_path / "before", {"de": [1, 0]})
    after = write(tmp_path / "after", {"de": [1, 0]}, {name: value})
    with pytest.raises(SlamkernError, match=rf"cannot be compared.*: {name} \(") as caught:
        compare(before, after)
    assert repr(SETTINGS[name]) in str(caught.value) and repr(value) in str(caught.value)


def test_all_differences_are_named_at_once_and_other_data_is_refused(tmp_path):
    before = write(tmp_path / "before", {"de": [1, 0, 0]})
    other = {"question": "how many is {0}?"}, {"gold": "7"}
    for number, changed in enumerate(other):
        after = write(tmp_path / f"after{number}", {"de": [1, 0]}, {"dtype": "bfloat16"}, **changed)
        with pytest.raises(SlamkernError, match=r"dtype \(.*; questions in de \(3 before, 2 after.*; data revision \("):
            compare(before, after)


def test_another_revision_of_the_data_is_refused_in_the_languages_compared(tmp_path):
    def data(**hashes):
        return {"data": {code: {"rows": 250, "sha256": 64 * value} for code, value in hashes.items()}}

    answers = {"de": [1, 0], "th": [1, 0]}
    before = write(tmp_path / "before", answers, notes=data(de="a", th="b"))
    after = write(tmp_path / "after", answers, notes=data(de="a", th="c"))
    with pytest.raises(SlamkernError, match=r"differs: data revision of th \(.*bbb.* before, .*ccc.* after\)$"):
        compare(before, after)
    assert (
        compare(before, after, languages=["de"], drift=False).settings["data revision"] == data(de="a", th="b")["data"]
    )


def test_unrecorded_settings_are_told(tmp_path):
    before, after = (write(tmp_path / name, {"de": [1, 0]}) for name in ("before", "after"))
    settings = {name: value for name, value in SETTINGS.items() if name not in ("dtype", "stop")}
    write_checked(before / "evaluation.json", {"kind": "evaluation", "settings": settings})
    assert compare(before, after, drift=False).unverified == ("stop", "dtype")


def test_languages_have_to_be_the_same_or_chosen(tmp_path):
    before = write(tmp_path / "before", {"de": [1, 0], "th": [1]})
    after = write(tmp_path / "after", {"de": [1, 0], "sw": [1]})
    with pytest.raises(SlamkernError, match=r"de th.*de sw.*name the languages"):
        compare(before, after)
    assert list(compare(before, after, languages=["de"], drift=False).languages) == ["de"]
    with pytest.raises(SlamkernError, match="after has no th"):
        compare(before, after, languages=["th"])
    with pytest.raises(SlamkernError, match="margin for 'fr'"):
        compare(before, after, languages=["de"], margins={"fr": 1})
    with pytest.raises(SlamkernError, match="margin of de is -1"):
        compare(before, after, languages=["de"], margins={"de": -1})


def test_results_in_memory_and_the_strict_rule():
    rows = [Prediction(f"x-de-{i}", "de", "?", "80000", "Das kostet 80.000 Dollar.", 0.0, False) for i in range(3)]
    before = summarize(rows, task="x", model="m", prompt="p", max_new_tokens=8)
    after = replace(before, predictions=tuple(replace(row, output="80000") for row in rows))
    assert compare(before, after, drift=False).languages["de"].gained == 3
    assert compare(before, after, rule="strict", drift=False).languages["de"].gained == 0
    with pytest.raises(SlamkernError, match="no predictions to compare"):
        compare(before, replace(after, predictions=()))
    with pytest.raises(SlamkernError, match="unknown rule 'loose'"):
        compare(before, after, rule="loose")
    with pytest.raises(SlamkernError, match="filter belongs to samples"):
        compare(before, after, filter_name="strict-match")
