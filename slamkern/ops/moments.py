"""Moments per language and neuron, and their exact parallel merge.

A moment is (count, mean, m2, active): how many tokens, their mean, the sum of squared deviations from the mean, and
how many were above zero. Two sets merge by Chan, Golub & LeVeque's pairwise formula (1979) in float64, so that a
variance never comes from subtracting two large sums.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

StatsTensors = tuple[Tensor, Tensor, Tensor, Tensor]  # count, mean, m2, active


@dataclass(frozen=True)
class Moments:
    """``count`` (languages,) int64; ``mean``, ``m2`` float64 and ``active`` int64 (languages, neurons)."""

    count: Tensor
    mean: Tensor
    m2: Tensor
    active: Tensor

    @classmethod
    def zeros(cls, languages: int, neurons: int, device: torch.device | str = "cpu") -> Self:
        """Moments of nothing, to merge into."""
        return cls(
            torch.zeros(languages, dtype=torch.int64, device=device),
            torch.zeros(languages, neurons, dtype=torch.float64, device=device),
            torch.zeros(languages, neurons, dtype=torch.float64, device=device),
            torch.zeros(languages, neurons, dtype=torch.int64, device=device),
        )

    @property
    def tensors(self) -> StatsTensors:
        return self.count, self.mean, self.m2, self.active


@dataclass(frozen=True)
class Recording:
    """What a forward over one batch adds to, and how."""

    language_ids: Tensor  # (tokens,) int32, -1 for none
    observe: str
    moments: Moments  # merged into in place
    plan: tuple[Tensor, ...] = ()  # dispatch.plan_rows of language_ids, the same for every layer


def merge_moments_(into: StatsTensors, added: StatsTensors) -> StatsTensors:
    """``into``, after merging ``added`` into it in place, without a host synchronization."""
    count, mean, m2, active = into
    merge_(count[:, None], mean, m2, added[0][:, None], added[1], added[2])
    count.add_(added[0])
    active.add_(added[3])
    return into


def merge_(count: Tensor, mean: Tensor, m2: Tensor, other_count: Tensor, other_mean: Tensor, other_m2: Tensor) -> None:
    """Merge the second (count, mean, m2) into ``mean`` and ``m2`` in place; counts broadcast and are left alone.

    With ``delta = mean_b - mean_a`` and ``n = n_a + n_b``: ``mean += delta n_b / n`` and
    ``m2 += m2_b + delta^2 n_a n_b / n``. A side without tokens leaves the other exactly as it was.
    """
    share = other_count.double() / (count + other_count).clamp(min=1)
    delta = other_mean - mean
    mean.addcmul_(delta, share)
    m2.add_(other_m2).add_(delta.square() * (share * count))
