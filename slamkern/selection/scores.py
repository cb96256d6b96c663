"""Scores of layers: pure functions of ActivationStats, [layers, languages] float64; larger = more language-specific.

The score of a layer is the mean of its row. ``p[l,i,n]`` is the share of the tokens of language ``l`` on which neuron
``n`` of layer ``i`` is active. A deviation is from the mean over languages or, with ``center="en"``, from English.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.probe.stats import ActivationStats


def _english(stats: ActivationStats) -> int:
    if "en" not in stats.languages:
        raise SlamkernError(f"a comparison with English needs 'en' among the languages: {' '.join(stats.languages)}")
    return stats.languages.index("en")


def _squared_deviation(x: Tensor, stats: ActivationStats, center: str) -> Tensor:
    if center == "mean":
        return (x - x.mean(0)).square()
    if center == "en":
        return (x - x[_english(stats)]).square()
    raise SlamkernError(f"unknown center {center!r}; known: mean en")


def active_msd(stats: ActivationStats, center: str = "mean") -> Tensor:
    """Mean squared deviation of active-neuron counts: ``N[l,i] = sum_n p[l,i,n]``, ``(N[l,i] - mean_l N[.,i])^2``.

    Units: neurons squared. After the Mean Squared Deviation of SLAM (arXiv 2501.03681).
    """
    return _squared_deviation(stats.active_rate.sum(-1), stats, center).T


def rate_msd(stats: ActivationStats, center: str = "mean") -> Tensor:
    """Mean over neurons of the squared deviation of ``p[l,i,n]``: which neurons fire, not only how many."""
    return _squared_deviation(stats.active_rate, stats, center).mean(-1).T


def mean_msd(stats: ActivationStats, center: str = "mean") -> Tensor:
    """Mean over neurons of the squared deviation of the mean activation, over the layer's pooled variance.

    The pooled variance ``sum_l m2 / sum_l count``, averaged over neurons, makes layers of different scale comparable:
    without it the score grows with depth only because activations do. No unit.
    """
    pooled = (stats.m2.sum(0) / stats.count.sum()).mean(-1)
    return (_squared_deviation(stats.mean, stats, center).mean(-1) / pooled.clamp(min=torch.finfo(pooled.dtype).tiny)).T


def english_overlap(stats: ActivationStats, center: str = "en") -> Tensor:
    """``1 - |A_l & A_en| / |A_en|`` with ``A_l`` the neurons active on more than half of the tokens of ``l``."""
    if center != "en":
        raise SlamkernError(f"english_overlap compares with English, not with center {center!r}; use center='en'")
    active = stats.active_rate > 0.5
    english = active[_english(stats)]
    shared = (active & english).sum(-1).double() / english.sum(-1).clamp(min=1)
    return torch.where(english.any(-1), 1 - shared, torch.zeros_like(shared)).T


def entropy(stats: ActivationStats) -> Tensor:
    """Entropy over languages of ``p[l,i,n] / sum_l p[l,i,n]``: [layers, neurons], nats; low = language-specific."""
    rate = stats.active_rate
    share = rate / rate.sum(0).clamp(min=torch.finfo(rate.dtype).tiny)
    return -torch.special.xlogy(share, share).sum(0)


def lape(stats: ActivationStats, center: str = "mean") -> Tensor:
    """Share of a layer's neurons that are specific to the language, by language activation probability entropy.

    Tang et al. 2024 (arXiv 2402.16438): of the neurons that some language activates more often than 95 % of all
    rates, the 1 % of lowest entropy; such a neuron belongs to each language whose rate passes that threshold.
    """
    if center != "mean":
        raise SlamkernError(f"lape has no center; {center!r} cannot apply, use center='mean'")
    rate, entropies = stats.active_rate, entropy(stats)
    threshold = rate.flatten().kthvalue(max(1, round(0.95 * rate.numel()))).values
    entropies = torch.where((rate > threshold).any(0), entropies, torch.inf)
    cutoff = entropies.flatten().kthvalue(max(1, round(0.01 * entropies.numel()))).values
    specific = (entropies <= cutoff) & entropies.isfinite()
    return ((rate > threshold) & specific).double().mean(-1).T


SCORES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {f.__name__: f for f in (active_msd, rate_msd, mean_msd, english_overlap, lape)}
)


def neuron_scores(stats: ActivationStats, score: str, center: str = "mean") -> Tensor:
    """How language-specific each neuron is, in the sense of a layer score: [layers, neurons] float64."""
    if score == "lape":
        return -entropy(stats)
    if score == "english_overlap":
        center = "en"
    observed = stats.mean if score == "mean_msd" else stats.active_rate
    return _squared_deviation(observed, stats, center).mean(0)
