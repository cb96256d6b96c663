"""Losses beside evaluations: read, judged by their margin, and left out where they are of other texts."""

import pytest

from slamkern.errors import SlamkernError
from slamkern.evaluation.forgetting import TEXTS, Losses, compare_losses, read_losses
from slamkern.files import write_checked

A, B = "a" * 64, "b" * 64


def margins(default, **kinds):
    return dict.fromkeys(TEXTS, default) | kinds


def test_a_rise_beyond_the_margin_is_worse_and_so_is_nothing_else():
    before = Losses({"English text": ("english", 2.0), "translation from de": ("translation", 3.0)}, {"english": A})
    for rise, verdict in ((0.06, "worse"), (0.05, "not worse"), (-0.04, "not worse"), (-0.2, "better")):
        after = Losses({"English text": ("english", 2.0 + rise)}, {"english": A})
        changes, unknown, left_out = compare_losses(before, after, margins(0.0501))
        assert changes["English text"].verdict == verdict and not unknown
        assert left_out == ["translation from de"]
        assert changes["English text"].difference == pytest.approx(rise)
    assert list(changes) == ["English text"]


def test_each_kind_of_loss_has_its_own_margin():
    values = {
        "English text": ("english", 2.0),
        "translation from de": ("translation", 3.0),
        "reply to de": ("reply", 1.0),
    }
    before = Losses(values, {"english": A, "held_out": B})
    after = Losses({name: (kind, loss + 0.1) for name, (kind, loss) in values.items()}, before.texts)
    for free in TEXTS:
        changes, _, _ = compare_losses(before, after, margins(0.05, **{free: 0.2}))
        found = {values[name][0]: (change.verdict, change.margin) for name, change in changes.items()}
        assert found == {kind: ("not worse", 0.2) if kind == free else ("worse", 0.05) for kind in TEXTS}


def test_losses_of_other_texts_are_left_out_and_of_unknown_ones_told():
    values = {"English text": ("english", 2.0), "translation from de": ("translation", 3.0)}
    changes, unknown, differing = compare_losses(
        Losses(values, {"english": A}), Losses(values, {"english": B}), margins(0.1)
    )
    assert differing == ["English text"] and unknown == ["held-out texts"]
    assert list(changes) == ["translation from de"]


def test_losses_that_one_side_alone_has_are_named():
    english, reply = {"English text": ("english", 2.0)}, {"reply to sw": ("reply", 1.0)}
    one, both = Losses(english, {"english": A}), Losses(english | reply, {"english": A})
    for before, after, left_out in (
        (None, both, ["English text", "reply to sw"]),
        (both, None, ["English text", "reply to sw"]),
        (one, both, ["reply to sw"]),
        (both, one, ["reply to sw"]),
        (None, None, []),
    ):
        changes, unknown, found = compare_losses(before, after, margins(0.1))
        assert (unknown, found) == ([], left_out)
        assert list(changes) == (["English text"] if before and after else [])


def test_they_stand_beside_the_folder_as_runs_write_them(tmp_path):
    (tmp_path / "before").mkdir()
    assert read_losses(tmp_path / "before") is None
    values = {"translation": {"de": {"loss": 3.0}}, "english_loss": 2.0, "reply_loss": {"sw": 1.0}, "evaluation": None}
    write_checked(tmp_path / "before.json", values | {"loss_texts": {"english": A, "held_out": B}})
    expected = {
        "English text": ("english", 2.0), "translation from de": ("translation", 3.0), "reply to sw": ("reply", 1.0),
    }  # fmt: skip
    for path in (tmp_path / "before", tmp_path / "before" / "predictions.jsonl"):
        assert read_losses(path) == Losses(expected, {"english": A, "held_out": B})
    write_checked(tmp_path / "before.json", values | {"english_loss": "low"})
    with pytest.raises(SlamkernError, match="english_loss"):
        read_losses(tmp_path / "before")
