"""Statistics of resampled questions: what a bootstrap over groups of questions draws from."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from slamkern.probe.stats import ActivationStats


def resamples(
    stats: ActivationStats, times: int, generator: torch.Generator, *, with_means: bool
) -> Iterator[ActivationStats]:
    """The statistics of as many groups of questions, drawn with replacement, the same groups in every language."""
    assert stats.groups is not None
    number = len(stats.groups.count)
    drawn = (torch.randint(number, (number,), generator=generator) for _ in range(times))
    return reweighted(stats, (torch.bincount(groups, minlength=number) for groups in drawn), with_means=with_means)


def reweighted(stats: ActivationStats, weights: Iterable[Tensor], *, with_means: bool) -> Iterator[ActivationStats]:
    """For each of ``weights``, (groups,), the statistics with every group of questions counted that many times.

    Means and variances are computed only where a score reads them, and then the variance is that of all questions.
    """
    groups = stats.groups
    assert groups is not None
    count, active = groups.count.double(), groups.active.double()
    weighted = groups.mean.double().mul_(count[:, :, None, None]) if with_means else None
    for weight in weights:
        weight = weight.double()
        tokens = torch.tensordot(weight, count, 1)
        # A language that a draw leaves without tokens keeps all of its own.
        lost = (tokens == 0)[:, None, None]
        tokens = torch.where(tokens == 0, stats.count.double(), tokens)
        again = replace(
            stats,
            count=tokens.long(),
            active=torch.where(lost, stats.active.double(), torch.tensordot(weight, active, 1)).long(),
        )
        if weighted is not None:
            means = torch.tensordot(weight, weighted, 1) / tokens[:, None, None]
            again = replace(again, mean=torch.where(lost, stats.mean, means), m2=stats.variance * tokens[:, None, None])
        yield again
