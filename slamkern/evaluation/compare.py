"""The gate after training: is the model better, not worse, or worse than before, language by language?

Both models answered the same questions under the same settings (`comparability` refuses anything else). A language is

- **better** if the interval of the difference is above 0 and the exact test of benefit, Holm-corrected, says so too;
- **worse** if the interval is below 0, reaches beyond the margin, and the exact test of harm, Holm-corrected, agrees;
- **not worse** if the interval is above minus the margin (non-inferiority: shown, not merely not refuted);
- else one **cannot tell**: ask more questions (`detectable` says what these could show).

The average over languages has no exact test and is judged by its interval alone.
What the numbers are stands in `paired`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from slamkern.errors import SlamkernError, refuse_string
from slamkern.evaluation.comparability import check_comparable
from slamkern.evaluation.drift import Drift, measure_drift
from slamkern.evaluation.forgetting import TEXTS, LossChange, compare_losses
from slamkern.evaluation.lm_eval_samples import is_samples, read_samples
from slamkern.evaluation.paired import Resampled, bootstrap, holm, mcnemar_one_sided
from slamkern.evaluation.recorded import Answer, Recorded, read_evaluation
from slamkern.evaluation.scoring import EvaluationResult
from slamkern.version import __version__

BETTER, NOT_WORSE, WORSE, CANNOT_TELL = VERDICTS = ("better", "not worse", "worse", "cannot tell")
ALPHA = 0.05
LOSS_MARGIN = 0.05  # 5 % of the perplexity; full fine-tuning on MetaMathQA forgets 0.03 (PEFT's method comparison)
AVERAGE = "average"


@dataclass(frozen=True)
class Change:
    """One language before and after. Percentages and percentage points; the tests are None for the average."""

    n: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    detectable: float
    gained: int
    lost: int
    margin: float
    verdict: str
    p_harm: float | None = None
    p_harm_holm: float | None = None
    p_benefit_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; ``gained`` and ``lost`` pair the answers (before, after) whose verdict changed."""

    before: str
    after: str
    settings: dict[str, Any]
    unverified: tuple[str, ...]
    languages: dict[str, Change]
    average: Change
    losses: dict[str, LossChange]
    losses_left_out: tuple[str, ...]
    drift: dict[str, tuple[Drift, Drift]]
    gained: tuple[tuple[Answer, Answer], ...]
    lost: tuple[tuple[Answer, Answer], ...]

    @property
    def verdict(self) -> str:
        """The worst of all: worse, cannot tell, not worse, better. A loss can only make it worse."""
        verdicts = {change.verdict for change in (*self.languages.values(), self.average)}
        verdicts |= {change.verdict for change in self.losses.values()} & {WORSE}
        return next(verdict for verdict in (WORSE, CANNOT_TELL, NOT_WORSE, BETTER) if verdict in verdicts)

    @property
    def exit_status(self) -> int:
        """0: nowhere worse; 1: worse in a language, on average, or in a loss; 3: neither can be said."""
        return {WORSE: 1, CANNOT_TELL: 3}.get(self.verdict, 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        verdict = {"slamkern": __version__, "verdict": self.verdict, "exit_status": self.exit_status}
        return verdict | asdict(self)


def compare(
    before: str | Path | EvaluationResult,
    after: str | Path | EvaluationResult,
    *,
    margin: float = 2.0,
    margins: Mapping[str, float] | None = None,
    loss_margin: float = LOSS_MARGIN,
    loss_margins: Mapping[str, float] | None = None,
    languages: Sequence[str] | None = None,
    rule: str | None = None,
    filter_name: str | None = None,
    drift: bool = True,
    allow: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations of the same questions: folders of `evaluate`, their results, or lm-eval samples.

    Args:
        margin: how many percentage points less still count as not worse; ``margins`` sets it for single languages (and
            for ``"average"``).
        loss_margin: nats a token that a held-out loss may rise, where both folders have losses beside them;
            ``loss_margins`` sets it for losses of one kind: ``english``, ``translation``, ``reply``.
        languages: compare these only; without it both must have the same ones.
        rule: ``standard`` or ``strict`` (see `scoring`); for lm-eval samples also ``recorded`` (their default), the
            harness' own verdict under the filter ``filter_name``.
        allow: settings that may differ, such as ``prompt_example`` where another way to ask is what is compared.
        drift: also measure language, length and degeneration of the responses; needs py3langid for shared scripts.

    Raises SlamkernError where something besides the model differs, naming all of it.
    """
    refuse_string(languages, "languages")
    refuse_string(allow, "allow")
    first, second = _read(before, rule, filter_name), _read(after, rule, filter_name)
    codes = _languages(first, second, languages)
    margins = {code: (margins or {}).get(code, margin) for code in (*codes, AVERAGE)} | dict(margins or {})
    _check_margins(margins, codes)
    loss_margins = dict.fromkeys(TEXTS, loss_margin) | dict(loss_margins or {})
    _check_loss_margins(loss_margins)
    unverified = check_comparable(first, second, codes, allow)
    losses, unknown, left_out = compare_losses(first.losses, second.losses, loss_margins)
    pairs = {
        code: [
            (answer, second.answers[code, number])
            for (spoken, number), answer in first.answers.items()
            if spoken == code
        ]
        for code in codes
    }
    changes = _matrix(pairs)
    per_language, overall = bootstrap(changes, resamples=resamples, seed=seed)
    judged = _judge(pairs, per_language, margins)
    average = _average(judged, overall, margins[AVERAGE])
    return Comparison(
        before=first.name, after=second.name,
        settings={name: first.settings[name] for name in first.settings if first.settings[name] is not None},
        unverified=(*unverified, *unknown), languages=judged, average=average,
        losses=losses, losses_left_out=tuple(left_out),
        drift={code: measure_drift(code, pairs[code]) for code in codes} if drift else {},
        gained=tuple(pair for code in codes for pair in pairs[code] if pair[1].correct and not pair[0].correct),
        lost=tuple(pair for code in codes for pair in pairs[code] if pair[0].correct and not pair[1].correct),
    )  # fmt: skip


def _read(source: str | Path | EvaluationResult, rule: str | None, filter_name: str | None) -> Recorded:
    if not isinstance(source, EvaluationResult) and is_samples(source):
        return read_samples(source, rule or "recorded", filter_name)
    if filter_name is not None:
        raise SlamkernError(f"a filter belongs to samples of lm-eval, and {source} has none; leave out {filter_name!r}")
    return read_evaluation(source, rule or "standard")


def _languages(first: Recorded, second: Recorded, chosen: Sequence[str] | None) -> list[str]:
    if chosen is None:
        if set(first.languages) != set(second.languages):
            raise SlamkernError(
                f"{first.name} answers in {' '.join(first.languages)}, {second.name} in {' '.join(second.languages)}; "
                "name the languages to compare"
            )
        return list(first.languages)
    codes = list(dict.fromkeys(chosen))
    for side in (first, second):
        if missing := [code for code in codes if code not in side.languages]:
            raise SlamkernError(f"{side.name} has no {' '.join(missing)}; it has {' '.join(side.languages)}")
    if not codes:
        raise SlamkernError("no languages given; name some or leave it out for all")
    return codes


def _check_margins(margins: Mapping[str, float], codes: Sequence[str]) -> None:
    for name, value in margins.items():
        if name not in (*codes, AVERAGE):
            raise SlamkernError(f"a margin for {name!r}, which is not compared; languages: {' '.join(codes)}")
        if not 0 <= value < 100:
            raise SlamkernError(f"the margin of {name} is {value}; expected percentage points from 0 to 100")


def _check_loss_margins(margins: Mapping[str, float]) -> None:
    for kind, value in margins.items():
        if kind not in TEXTS:
            raise SlamkernError(f"a margin for losses of {kind!r}, which there are not; known: {' '.join(TEXTS)}")
        if not 0 <= value < math.inf:
            raise SlamkernError(f"the margin of {kind} losses is {value}; expected 0 nats a token or more")


def _matrix(pairs: Mapping[str, Sequence[tuple[Answer, Answer]]]) -> np.ndarray:
    """(questions, languages): +1 gained, -1 lost, 0 unchanged, NaN not asked in that language."""
    numbers = {old.question_id: None for rows in pairs.values() for old, _ in rows}
    row_of = {number: row for row, number in enumerate(numbers)}
    matrix = np.full((len(numbers), len(pairs)), np.nan)
    for column, rows in enumerate(pairs.values()):
        for old, new in rows:
            matrix[row_of[old.question_id], column] = float(new.correct) - float(old.correct)
    return matrix


def _judge(
    pairs: Mapping[str, Sequence[tuple[Answer, Answer]]], resampled: Sequence[Resampled], margins: Mapping[str, float]
) -> dict[str, Change]:
    gained = {code: sum(new.correct and not old.correct for old, new in rows) for code, rows in pairs.items()}
    lost = {code: sum(old.correct and not new.correct for old, new in rows) for code, rows in pairs.items()}
    harm = {code: mcnemar_one_sided(lost[code], gained[code]) for code in pairs}
    harm_holm = holm(harm)
    benefit_holm = holm({code: mcnemar_one_sided(gained[code], lost[code]) for code in pairs})
    changes = {}
    for (code, rows), estimate in zip(pairs.items(), resampled, strict=True):
        n = len(rows)
        before, after = (100 * sum(pair[side].correct for pair in rows) / n for side in (0, 1))
        changes[code] = Change(
            n=n, before=before, after=after, difference=100 * (gained[code] - lost[code]) / n,
            interval=estimate.interval, detectable=estimate.detectable, gained=gained[code], lost=lost[code],
            margin=margins[code],
            verdict=decide(estimate.interval, margins[code], harm_holm[code], benefit_holm[code]),
            p_harm=harm[code], p_harm_holm=harm_holm[code], p_benefit_holm=benefit_holm[code],
        )  # fmt: skip
    return changes


def _average(languages: Mapping[str, Change], estimate: Resampled, margin: float) -> Change:
    rows = list(languages.values())
    return Change(
        n=sum(row.n for row in rows), before=fmean(row.before for row in rows), after=fmean(row.after for row in rows),
        difference=fmean(row.difference for row in rows), interval=estimate.interval, detectable=estimate.detectable,
        gained=sum(row.gained for row in rows), lost=sum(row.lost for row in rows), margin=margin,
        verdict=decide(estimate.interval, margin),
    )  # fmt: skip


def decide(interval: tuple[float, float], margin: float, p_harm: float = 0.0, p_benefit: float = 0.0) -> str:
    """The verdict of an interval (percentage points) and of the corrected tests, where there are any."""
    low, high = interval
    if low > 0 and p_benefit <= ALPHA:
        return BETTER
    if low > -margin:
        return NOT_WORSE
    return WORSE if high < 0 and p_harm <= ALPHA else CANNOT_TELL
