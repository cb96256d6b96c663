"""Rank correlation of two lists of numbers, and how far it can be trusted with so few of them.

Spearman's rho is Pearson's correlation of the ranks (ties share their mean rank), Kendall's tau-b the surplus of pairs
in the same order among pairs that are tied in neither. NaN where one list is constant.
"""

import numpy as np

Array = np.ndarray


def ranks(values: Array) -> Array:
    """(..., n) -> mean ranks from 0 of the last dimension."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (equal - 1) / 2


def spearman(x: Array, y: Array) -> Array:
    """(..., n) and (..., n) -> (...)."""
    a, b = (r - r.mean(-1, keepdims=True) for r in (ranks(x), ranks(y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def kendall(x: Array, y: Array) -> float:
    """(n,) and (n,) -> tau-b."""
    a, b = (np.sign(v[:, None] - v[None, :]) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def spearman_interval(x: Array, y: Array, *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap over the pairs; resamples without a correlation are left out, (NaN, NaN) without any.

    The pairs count as independent. Layers beside each other are alike, so the truth is somewhat wider.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(x), size=(resamples, len(x)))
    found = spearman(x[drawn], y[drawn])
    found = found[~np.isnan(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
