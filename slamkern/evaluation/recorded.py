"""A finished evaluation, ours or that of lm-evaluation-harness, read for a comparison: answers and settings.

Ours is a folder with ``predictions.jsonl`` and ``evaluation.json``, or an `EvaluationResult` in memory; the other is
what `lm_eval_samples` reads. Nothing is computed here but whether an answer is right, by the rule that is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.evaluation.forgetting import Losses, read_losses
from slamkern.evaluation.scoring import RULE, STRICT_RULE, EvaluationResult, judge, judge_strict
from slamkern.run_folder import read_record
from slamkern.schemas.predictions import KIND, PREDICTIONS_FILE, SETTINGS_FILE, Prediction, read_predictions

DATA_REVISION = "data revision"
RULES: Mapping[str, str] = {"standard": RULE, "strict": STRICT_RULE}


@dataclass(frozen=True)
class Answer:
    """One answered question; ``question_id`` is the same in every language.

    ``prompt`` and ``truncated`` (whether the answer was cut at ``max_new_tokens``) are None where not recorded.
    """

    question_id: str
    language: str
    question: str
    gold: str
    output: str
    correct: bool
    prompt: str | None = None
    truncated: bool | None = None


@dataclass(frozen=True)
class Recorded:
    """The answers of one evaluation by (language, question id), and the settings that they depend on, by name.

    ``losses``: the held-out losses beside it, where there are some.
    """

    name: str
    model: str
    settings: dict[str, Any]
    answers: dict[tuple[str, str], Answer]
    losses: Losses | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order of their first appearance."""
        return tuple(dict.fromkeys(language for language, _ in self.answers))


def read_evaluation(source: str | Path | EvaluationResult, rule: str = "standard") -> Recorded:
    """The evaluation at a path (its folder or ``predictions.jsonl``), or one in memory with its predictions.

    SlamkernError for what is none, an unknown rule, and a result without predictions.
    """
    if rule not in RULES:
        raise SlamkernError(f"unknown rule {rule!r}; known: {' '.join(RULES)}")
    if isinstance(source, EvaluationResult):
        if not source.predictions:
            raise SlamkernError(f"the result of {source.model} on {source.task} holds no predictions to compare")
        names = ("task", "prompt", "max_new_tokens")
        settings = {name: getattr(source, name) for name in names}
        return _recorded(source.model, source.model, settings, source.predictions, rule)
    path = Path(source)
    path = path / PREDICTIONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise SlamkernError(
            f"{path} does not exist; expected an evaluation folder or samples_*.jsonl of lm-eval{_inside(Path(source))}"
        )
    beside = path.with_name(SETTINGS_FILE)
    settings, notes = read_record(beside, KIND) if beside.exists() else ({}, {})
    settings = {name: value for name, value in settings.items() if name != "weights"}  # those are what is compared
    if data := notes.get("data"):
        settings[DATA_REVISION] = data
    found = _recorded(str(source), str(notes.get("model", "unknown")), settings, read_predictions(path), rule)
    return replace(found, losses=read_losses(path))


def _inside(folder: Path) -> str:
    """Which evaluations a folder has in it, that of a run or of a bake-off: half a sentence."""
    places = ("*", "evaluation/*", "cells/*/seed-*/*")
    files = (path for place in places for path in folder.glob(f"{place}/{PREDICTIONS_FILE}"))
    found = sorted(str(path.parent.relative_to(folder)) for path in files)
    return f", and in {folder} there are {', '.join(found[:4])}{' ...' * (len(found) > 4)}" if found else ""


def _recorded(
    name: str, model: str, settings: dict[str, Any], predictions: Sequence[Prediction], rule: str
) -> Recorded:
    if not predictions:
        raise SlamkernError(f"{name} holds no predictions")
    answers = {}
    for entry in predictions:
        correct = (
            judge(entry.output, entry.gold)[1]
            if rule == "standard"
            else judge_strict(entry.output, entry.gold, entry.language)
        )
        number = entry.id.replace(f"-{entry.language}-", "-", 1)  # mgsm-de-7 and mgsm-th-7 are the same question
        answers[entry.language, number] = Answer(
            number, entry.language, entry.question, entry.gold, entry.output, correct, truncated=entry.truncated
        )
    if len(answers) != len(predictions):
        raise SlamkernError(f"{name}: ids that differ only in their language are not of different questions")
    return Recorded(name, model, {**settings, "rule": RULES[rule]}, answers)
