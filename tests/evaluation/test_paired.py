"""Paired statistics against published values, against scipy, and by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from slamkern.errors import SlamkernError
from slamkern.evaluation.paired import bootstrap, holm, mcnemar, mcnemar_one_sided


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(10, 2) == mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar(0, 0) == mcnemar_one_sided(0, 0) == 1.0
    assert mcnemar_one_sided(10, 2) == pytest.approx((1 + 12 + 66) / 4096)
    assert mcnemar_one_sided(2, 10) == pytest.approx(1 - (1 + 12) / 4096)
    assert mcnemar_one_sided(5, 0) == 2**-5


@pytest.mark.parametrize(("suspected", "opposite"), [(0, 7), (13, 9), (120, 90), (1000, 900)])
def test_mcnemar_agrees_with_scipy(suspected, opposite):
    expected = binomtest(suspected, suspected + opposite, alternative="greater").pvalue
    assert mcnemar_one_sided(suspected, opposite) == pytest.approx(expected, rel=1e-9)


def test_holm_multiplies_by_the_open_hypotheses_in_order_of_p_and_never_decreases():
    # Holm's own scheme on four values; "c" inherits the adjusted value of "b".
    adjusted = holm({"b": 0.020, "a": 0.005, "d": 0.900, "c": 0.021})
    assert list(adjusted) == ["b", "a", "d", "c"]
    assert adjusted == pytest.approx({"a": 0.020, "b": 0.060, "c": 0.060, "d": 0.900})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def changes(rng, n, languages, flips, delta, together):
    """(n, languages) changes of mean ``delta``; with chance ``together`` a language does what the question does."""
    shared, own = rng.random((n, 1)), rng.random((n, languages))
    draw = np.where(rng.random((n, languages)) < together, shared, own)
    gained, lost = (flips + delta) / 2, (flips - delta) / 2
    return np.where(draw < gained, 1.0, np.where(draw < gained + lost, -1.0, 0.0))


@pytest.mark.parametrize(
    ("n", "flips", "delta", "together"),
    [(250, 0.2, -0.05, 0.9), (60, 0.1, 0.0, 0.5), (30, 0.05, 0.0, 0.0)],  # MGSM; a screen; hardly a change
)
def test_bootstrap_intervals_cover_the_truth(n, flips, delta, together):
    rng = np.random.default_rng(n)
    trials, languages = 150, 4
    one = average = 0
    for trial in range(trials):
        each, mean = bootstrap(changes(rng, n, languages, flips, delta, together), resamples=300, seed=trial)
        one += sum(low <= 100 * delta <= high for low, high in (language.interval for language in each))
        average += mean.interval[0] <= 100 * delta <= mean.interval[1]
    # 95 % is meant; 150 trials have a standard error of 1.8 %. Few changes widen the interval on purpose.
    assert one / trials / languages >= 0.93
    assert average / trials >= 0.91


def test_languages_that_flip_together_are_not_taken_for_independent():
    rng = np.random.default_rng(0)
    column = changes(rng, 250, 1, 0.2, 0.0, 1.0)
    together, apart = np.repeat(column, 8, axis=1), changes(rng, 250, 8, 0.2, 0.0, 0.0)
    single = bootstrap(column)[1].standard_error
    assert bootstrap(together)[1].standard_error == pytest.approx(single, rel=0.05)
    assert bootstrap(apart)[1].standard_error < 0.5 * single


def test_detectable_change_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    column = rng.permutation(np.repeat([1.0, -1.0, 0.0], [25, 25, 200]))[:, None]
    # (1.96 + 0.84) sqrt(0.2 / 250): 7.9 points for one MGSM language with 20 % of flips
    assert bootstrap(column)[0][0].detectable == pytest.approx(7.9, abs=0.15)


def test_no_change_seen_is_not_certainty_and_missing_answers_count_for_nothing():
    unchanged = np.zeros((20, 2))
    low, high = bootstrap(unchanged)[0][0].interval
    assert low < -4 and high > 4
    unchanged[10:, 1] = np.nan
    wider = bootstrap(unchanged)[0][1].interval
    assert wider[0] < low
    unchanged[:, 1] = np.nan
    with pytest.raises(SlamkernError, match="without a question"):
        bootstrap(unchanged)
