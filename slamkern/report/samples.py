"""Sample outputs for a report: the same questions answered before and after, and what so few answers can show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slamkern.schemas.predictions import Prediction, read_predictions

SAMPLES, CHARACTERS = 6, 400
# Changed all one way, the fewest answers that a two-sided sign (McNemar's) test finds at 5 %: 2 * 0.5^6 = 0.031.
FEWEST_CHANGES = 6
ENOUGH_TEXTS = 20


def sample_outputs(folder: Path) -> list[dict[str, str]]:
    """One question a language, as many as ``SAMPLES``, with the outputs before and after; empty without predictions.

    Questions whose verdict changed come first: they show what training did.
    """
    paths = [folder / "evaluation" / when / "predictions.jsonl" for when in ("before", "after")]
    if not all(path.is_file() for path in paths):
        return []
    before, after = ({entry.id: entry for entry in read_predictions(path)} for path in paths)
    chosen: dict[str, tuple[Prediction, Prediction]] = {}
    for identity, old in before.items():
        new = after.get(identity)
        if new is None:
            continue
        shown = chosen.get(old.language)
        if shown is None or (shown[0].correct == shown[1].correct and old.correct != new.correct):
            chosen[old.language] = (old, new)
    return [
        {
            "language": old.language, "question": _short(old.question), "gold": _short(old.gold),
            "before": _short(old.output), "before_verdict": _verdict(old.correct),
            "after": _short(new.output), "after_verdict": _verdict(new.correct),
        }
        for old, new in list(chosen.values())[:SAMPLES]
    ]  # fmt: skip


def changed_samples(pairs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """At most ``SAMPLES`` of the answers (before, after) that a comparison found changed, languages in turns."""
    by_language: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for pair in pairs:
        by_language.setdefault(pair[0]["language"], []).append(pair)
    longest = max(map(len, by_language.values()), default=0)
    turns = [rows[turn] for turn in range(longest) for rows in by_language.values() if turn < len(rows)]
    return [
        {
            "language": old["language"], "question": _short(old["question"]), "gold": _short(old["gold"]),
            "before": _short(old["output"]), "before_verdict": _verdict(old["correct"]),
            "after": _short(new["output"]), "after_verdict": _verdict(new["correct"]),
        }
        for old, new in turns[:SAMPLES]
    ]  # fmt: skip


def too_few(n: Mapping[str, int]) -> str | None:
    """What so few questions a language cannot show, in words; None where they are enough for a change of 10 points."""
    smallest = min(n.values())
    points = 100 * FEWEST_CHANGES / smallest
    if points <= 10:
        return None
    if smallest < FEWEST_CHANGES:
        return f"{smallest} questions in a language are too few to conclude anything about it."
    return (
        f"With {smallest} questions in a language, a change of less than {points:.0f} points cannot be told from "
        f"chance (fewer than {FEWEST_CHANGES} answers that change all one way); treat these numbers as an illustration."
    )


def few_texts(texts: int) -> str | None:
    """That means over so few texts of a language move by chance; None from ``ENOUGH_TEXTS`` on."""
    if texts >= ENOUGH_TEXTS:
        return None
    return f"With {texts} texts in a language, a small difference may be that of single texts: an illustration."


def _verdict(correct: bool) -> str:
    return "right" if correct else "wrong"


def _short(text: Any) -> str:
    text = str(text).strip()
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} [...]"
