"""Statistics of resampled questions: what a bootstrap over groups of questions draws from."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from slamkern.probe.stats import ActivationStats


def resamples(
    stats: ActivationStats, times: int, generator: torch.Generator, *, with_means: bool
) -> Iterator[ActivationStats]:
    """The statistics of as many groups of questions, drawn with replacement, the same groups in every language.

    Means and variances are resampled only where a score reads them, and then the variance is that of all questions.
    """
    groups = stats.groups
    assert groups is not None
    count, active = groups.count.double(), groups.active.double()
    weighted = groups.mean.double().mul_(count[:, :, None, None]) if with_means else None
    for _ in range(times):
        drawn = torch.randint(len(count), (len(count),), generator=generator)
        weights = torch.bincount(drawn, minlength=len(count)).double()
        tokens = torch.tensordot(weights, count, 1)
        # A language that a draw leaves without tokens keeps all of its own.
        lost = (tokens == 0)[:, None, None]
        tokens = torch.where(tokens == 0, stats.count.double(), tokens)
        again = replace(
            stats,
            count=tokens.long(),
            active=torch.where(lost, stats.active.double(), torch.tensordot(weights, active, 1)).long(),
        )
        if weighted is not None:
            means = torch.tensordot(weights, weighted, 1) / tokens[:, None, None]
            again = replace(again, mean=torch.where(lost, stats.mean, means), m2=stats.variance * tokens[:, None, None])
        yield again
