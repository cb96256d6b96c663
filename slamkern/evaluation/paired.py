"""Statistics of paired right-or-wrong answers: the same questions before and after, in one or many languages.

Everything is in counts and percentage points. The exact tests are sums of binomial coefficients over integers, Holm's
procedure is a running maximum: neither needs a statistics package.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slamkern.errors import SlamkernError

Z_POWER = 0.8416212335729143  # the 80 % quantile of the standard normal distribution
_CHUNK = 1000  # resamples drawn at once: 1000 x 1000 questions of int64 are 8 MB


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: the chance of a split at least this uneven if gains are as likely as losses."""
    return min(1.0, 2 * mcnemar_one_sided(max(gained, lost), min(gained, lost)))


def mcnemar_one_sided(suspected: int, opposite: int) -> float:
    """Exact one-sided McNemar test: the chance of at least ``suspected`` of all changes if each is a coin toss.

    ``mcnemar_one_sided(lost, gained)`` tests for harm, ``mcnemar_one_sided(gained, lost)`` for benefit.
    """
    changed = suspected + opposite
    tail = sum(math.comb(changed, k) for k in range(suspected, changed + 1))
    return tail / 2**changed


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979): each p-value times the number of hypotheses still open, never decreasing."""
    adjusted, running = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for rank, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


@dataclass(frozen=True)
class Resampled:
    """Bootstrap distribution of a difference, in percentage points."""

    interval: tuple[float, float]
    standard_error: float

    @property
    def detectable(self) -> float:
        """The change that a repetition finds with 80 % power at 5 % (two-sided): ``(z_.975 + z_.8) * standard error``.

        For one language that is ``(z_a + z_b) sqrt(flips / n)``, flips the share of questions that changed.
        """
        return (1.959963984540054 + Z_POWER) * self.standard_error


def bootstrap(
    changes: np.ndarray, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> tuple[list[Resampled], Resampled]:
    """Paired bootstrap of the mean change of every language and of their unweighted average, clustered by question.

    changes: (questions, languages) float64; +1 gained, -1 lost, 0 unchanged, NaN not asked. A resample draws questions
    with replacement and takes the answers in all languages of a question together, because they stand or fall together.

    A plain bootstrap of few changes is too sure of itself (no change seen would give an interval of width 0), so each
    resample also draws the two pseudo-questions of Agresti and Min (2005, Stat. Med. 24): half a gain, half a loss and
    one unchanged a language. With n questions they move a bound by about 1/n.
    """
    asked = ~np.isnan(changes)
    n = asked.sum(0)
    if not n.all():
        raise SlamkernError("a language without a question has no difference to estimate")
    values = np.where(asked, changes, 0.0)
    rng = np.random.default_rng(seed)
    questions = len(values)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        # (resamples, questions): how often each question is drawn. int64 counts times float64 values stay exact.
        drawn = rng.multinomial(questions, np.full(questions, 1 / questions), size=rows).astype(np.float64)
        pseudo = rng.binomial(n + 2, 0.5 / (n + 2), size=(2, rows, len(n)))
        means[start : start + rows] = (drawn @ values + pseudo[0] - pseudo[1]) / (drawn @ asked.astype(float) + 2)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]

    def summary(samples: np.ndarray) -> Resampled:
        low, high = np.percentile(100 * samples, tails)
        return Resampled((float(low), float(high)), float(100 * samples.std(ddof=1)))

    return [summary(column) for column in means.T], summary(means.mean(1))
