"""From predictions to scores, without a model: accuracy per language, its average, and intervals.

Only ``output`` and ``gold`` of a prediction decide a score; its ``prediction`` and ``correct`` are what the standard
rule said when the line was written and are computed anew. Two rules are always reported side by side:

- standard: the last number of the output, commas between digits deleted (MathOctopus, QAlign); no number counts as 0;
- strict: ``answers.extract_answer_strict`` (signs, fractions, European decimals, native digits); no number is wrong.

Either way an answer is correct within 1e-3 of the gold answer, read by the same rule. All accuracies and intervals
are percentages; the average is the unweighted mean over languages.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from slamkern.data.answers import extract_answer, extract_answer_strict, is_correct
from slamkern.errors import SlamkernError
from slamkern.run_folder import read_record
from slamkern.schemas.predictions import KIND, SETTINGS_FILE, Prediction, read_predictions

RULE = "last number of the output, within 1e-3 of the gold answer"
STRICT_RULE = "number as a person reads it, within 1e-3 of the gold answer"
Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution

Interval = tuple[float, float]


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one model on one task, with the prompt and the rule that they depend on. Percentages throughout."""

    task: str
    model: str
    prompt: str
    rule: str
    max_new_tokens: int | None
    n: dict[str, int]
    accuracy: dict[str, float]
    intervals: dict[str, Interval]
    average: float
    average_interval: Interval
    strict: dict[str, float]
    strict_average: float
    predictions: tuple[Prediction, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON values, without the predictions."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "predictions"}
        values["intervals"] = {code: list(interval) for code, interval in self.intervals.items()}
        values["average_interval"] = list(self.average_interval)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of ``to_dict``; missing or unknown keys are refused by name."""
        known = {entry.name for entry in fields(cls)} - {"predictions"}
        if known != set(values):
            raise SlamkernError(f"not the scores of an evaluation: {sorted(known ^ set(values))} missing or unknown")
        intervals = {code: (float(low), float(high)) for code, (low, high) in values["intervals"].items()}
        low, high = values["average_interval"]
        return cls(**{**values, "intervals": intervals, "average_interval": (float(low), float(high))})


def judge(output: str, gold: str) -> tuple[float | None, bool]:
    """``(prediction, correct)`` of an output under the standard rule; None for a number beyond the range of a float."""
    prediction = extract_answer(output)
    return (prediction if math.isfinite(prediction) else None), is_correct(prediction, extract_answer(gold))


def judge_strict(output: str, gold: str, language: str | None = None) -> bool:
    """Whether an output in ``language`` is correct under the strict rule; ``gold`` is written the English way."""
    answer = extract_answer_strict(gold)
    return answer is not None and is_correct(extract_answer_strict(output, language), answer)


def wilson_interval(correct: int, n: int) -> Interval:
    """95 % score interval of a proportion in percent (Wilson 1927, JASA 22).

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``: inside [0, 100] and of positive width even where
    every answer is right or wrong.
    """
    p, z2 = correct / n, Z95 * Z95
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, center - half)
    high = 1.0 if correct == n else min(1.0, center + half)
    return 100 * low, 100 * high


def average_interval(accuracy: Mapping[str, float], intervals: Mapping[str, Interval]) -> Interval:
    """95 % interval of the unweighted mean over languages by MOVER (Zou & Donner 2008, Stat. Med. 27).

    With ``p_l`` in ``(lo_l, hi_l)`` for L languages: ``mean - sqrt(sum (p_l - lo_l)^2) / L`` to
    ``mean + sqrt(sum (hi_l - p_l)^2) / L``. Languages count as independent; where they ask the same questions
    their answers correlate and the truth is somewhat wider.
    """
    mean, count = fmean(accuracy.values()), len(accuracy)
    below = math.hypot(*(accuracy[code] - intervals[code][0] for code in accuracy)) / count
    above = math.hypot(*(intervals[code][1] - accuracy[code] for code in accuracy)) / count
    return max(0.0, mean - below), min(100.0, mean + above)


def summarize(
    predictions: Iterable[Prediction], *, task: str, model: str, prompt: str, max_new_tokens: int | None
) -> EvaluationResult:
    """Scores of predictions, languages in the order of their first appearance."""
    predictions = tuple(predictions)
    if not predictions:
        raise SlamkernError("there are no predictions to score")
    verdicts: dict[str, list[tuple[bool, bool]]] = {}
    for entry in predictions:
        verdict = judge(entry.output, entry.gold)[1], judge_strict(entry.output, entry.gold, entry.language)
        verdicts.setdefault(entry.language, []).append(verdict)
    accuracy = {code: 100 * fmean(standard for standard, _ in rows) for code, rows in verdicts.items()}
    strict = {code: 100 * fmean(strict for _, strict in rows) for code, rows in verdicts.items()}
    intervals = {code: wilson_interval(sum(s for s, _ in rows), len(rows)) for code, rows in verdicts.items()}
    return EvaluationResult(
        task=task, model=model, prompt=prompt, rule=RULE, max_new_tokens=max_new_tokens,
        n={code: len(rows) for code, rows in verdicts.items()}, accuracy=accuracy, intervals=intervals,
        average=fmean(accuracy.values()), average_interval=average_interval(accuracy, intervals),
        strict=strict, strict_average=fmean(strict.values()), predictions=predictions,
    )  # fmt: skip


def score(predictions_path: str | Path) -> EvaluationResult:
    """Scores of a predictions file alone; task, model and prompt come from the ``evaluation.json`` beside it.

    Raises SlamkernError naming ``file:line`` for a bad line, and for a file without predictions.
    """
    path = Path(predictions_path)
    beside = path.with_name(SETTINGS_FILE)
    settings, notes = read_record(beside, KIND) if beside.exists() else ({}, {})
    predictions = read_predictions(path)
    if not predictions:
        raise SlamkernError(f"{path} holds no predictions")
    for entry in predictions:
        if not any(character.isdecimal() for character in entry.gold):
            raise SlamkernError(f"{path}: question {entry.id!r} has no number in its gold answer {entry.gold!r:.60}")
    return summarize(
        predictions, task=settings.get("task", "unknown"), model=notes.get("model", "unknown"),
        prompt=settings.get("prompt", "unknown"), max_new_tokens=settings.get("max_new_tokens"),
    )  # fmt: skip


def format_table(result: EvaluationResult) -> str:
    """The scores as plain text, one language a line, always with the model, the prompt and the rule."""
    lines = [
        f"{result.task}: {result.model}",
        f"prompt: {result.prompt}",
        f"rule:   {result.rule}; greedy, at most {result.max_new_tokens or 'unknown'} new tokens",
        f"{'language':<10}{'n':>6}{'accuracy %':>12}{'95 % interval':>18}{'strict %':>10}",
    ]
    rows: Sequence[tuple[str, int, float, Interval, float]] = [
        *((c, result.n[c], result.accuracy[c], result.intervals[c], result.strict[c]) for c in result.accuracy),
        ("average", sum(result.n.values()), result.average, result.average_interval, result.strict_average),
    ]
    for name, n, accuracy, (low, high), strict in rows:
        interval = f"{low:.1f} to {high:.1f}"
        lines.append(f"{name:<10}{n:>6}{accuracy:>12.1f}{interval:>18}{strict:>10.1f}")
    return "\n".join(lines)
