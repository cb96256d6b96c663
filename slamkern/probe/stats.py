"""ActivationStats: per language, layer and neuron, how FFN neurons behave over the tokens of a corpus.

The file is safetensors: ``count`` int64 [languages], ``mean`` and ``m2`` float64 and ``active`` int64
[languages, layers, neurons], with the languages, the model and the observed tensor as metadata. Where questions were
put into groups, ``group_*`` tensors hold the same per group (mean in float32): resampling groups of questions is
what tells how stable a selection is. Two files of one model merge exactly (Chan's parallel formula in float64).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.files import load_tensors, save_tensors
from slamkern.ops import OBSERVABLES
from slamkern.ops.moments import merge_
from slamkern.schemas.check import check
from slamkern.schemas.stats import StatsMetadata
from slamkern.version import __version__


def model_signature(config: Any) -> str:
    """What must agree for statistics, selections and trained weights to fit a model: its type and its shape."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = (getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    return "-".join([str(getattr(text, "model_type", type(text).__name__)), *(str(size or 0) for size in sizes)])


@dataclass(frozen=True)
class QuestionGroups:
    """The statistics of each group of questions.

    ``count`` [groups, languages] int64, ``mean`` float32 and ``active`` int32 [groups, languages, layers, neurons].
    """

    count: Tensor
    mean: Tensor
    active: Tensor


@dataclass(frozen=True)
class ActivationStats:
    """Moments of the observed activations of a model, per language, layer and neuron.

    ``count`` [languages] int64 tokens; ``mean`` and ``m2`` (sum of squared deviations from the mean)
    [languages, layers, neurons] float64; ``active`` [languages, layers, neurons] int64: tokens with a value above 0.
    """

    languages: tuple[str, ...]
    model: str
    signature: str
    observe: str
    count: Tensor
    mean: Tensor
    m2: Tensor
    active: Tensor
    groups: QuestionGroups | None = None

    @property
    def num_layers(self) -> int:
        return self.mean.shape[1]

    @property
    def active_rate(self) -> Tensor:
        """Share of a language's tokens on which a neuron is active: [languages, layers, neurons] float64."""
        return self.active.double() / self.count[:, None, None].clamp(min=1)

    @property
    def variance(self) -> Tensor:
        """Population variance of the observed value: [languages, layers, neurons] float64."""
        return self.m2 / self.count[:, None, None].clamp(min=1)

    def merge(self, other: "ActivationStats") -> "ActivationStats":
        """The statistics of both corpora together, over the union of their languages."""
        for name in ("signature", "observe"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise SlamkernError(f"cannot merge statistics of {name} {mine!r} and {theirs!r}; probe one model alike")
        if self.mean.shape[1:] != other.mean.shape[1:]:
            raise SlamkernError(
                f"cannot merge statistics of {tuple(self.mean.shape[1:])} and {tuple(other.mean.shape[1:])} "
                "(layers, neurons); probe one model alike"
            )
        languages = self.languages + tuple(code for code in other.languages if code not in self.languages)
        here, there = _spread(self, languages), _spread(other, languages)
        merge_(here.count[:, None, None], here.mean, here.m2, there.count[:, None, None], there.mean, there.m2)
        groups = None
        if here.groups is not None and there.groups is not None:
            groups = QuestionGroups(
                torch.cat([here.groups.count, there.groups.count]),
                torch.cat([here.groups.mean, there.groups.mean]),
                torch.cat([here.groups.active, there.groups.active]),
            )
        return ActivationStats(
            languages, self.model, self.signature, self.observe,
            here.count + there.count, here.mean, here.m2, here.active + there.active, groups,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the statistics to a safetensors file, atomically; SlamkernError for what :meth:`load` would refuse."""
        if (flaw := _flaw(self)) is not None:
            raise SlamkernError(f"the statistics are not saved to {path}: {flaw}")
        tensors = {"count": self.count, "mean": self.mean, "m2": self.m2, "active": self.active}
        if self.groups is not None:
            tensors |= {f"group_{name}": tensor for name, tensor in vars(self.groups).items()}
        metadata = {
            "slamkern_version": __version__,
            "languages": list(self.languages),
            "model": self.model,
            "signature": self.signature,
            "observe": self.observe,
        }
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "ActivationStats":
        """Read statistics; SlamkernError for a file that is foreign, truncated, or holds what no probe can find."""
        tensors, metadata = load_tensors(path, "statistics")
        about = check(StatsMetadata, json.dumps(metadata), f"{path} is not a statistics file")
        try:
            count, mean, m2, active = (tensors[name] for name in ("count", "mean", "m2", "active"))
            names = [name for name in tensors if name.startswith("group_")]
            groups = QuestionGroups(*(tensors[f"group_{n}"] for n in ("count", "mean", "active"))) if names else None
            stats = cls(about.languages, about.model, about.signature, about.observe, count, mean, m2, active, groups)
        except KeyError as error:
            raise SlamkernError(f"{path} is not a statistics file: {error.args[0]!r} is missing") from error
        if (flaw := _flaw(stats)) is not None:
            raise SlamkernError(f"{path} is inconsistent: {flaw}")
        return stats


def _flaw(stats: ActivationStats) -> str | None:
    """What cannot be true of statistics that a probe found; None where all can."""
    codes, groups = stats.languages, stats.groups
    if stats.observe not in OBSERVABLES:
        return f"it observes {stats.observe!r}; known: {' '.join(OBSERVABLES)}"
    if stats.mean.dim() != 3 or 0 in stats.mean.shape[1:]:
        return f"its mean is {tuple(stats.mean.shape)}, not (languages, layers, neurons)"
    shape = (len(codes), *stats.mean.shape[1:])
    expected = [("count", stats.count, shape[:1], torch.int64), ("active", stats.active, shape, torch.int64)]
    expected += [(name, getattr(stats, name), shape, torch.float64) for name in ("mean", "m2")]
    if groups is not None:
        number = groups.count.shape[:1]
        expected += [("group_count", groups.count, (*number, len(codes)), torch.int64)]
        expected += [("group_mean", groups.mean, (*number, *shape), torch.float32)]
        expected += [("group_active", groups.active, (*number, *shape), torch.int32)]
    for name, tensor, size, dtype in expected:
        if tensor.shape != size:
            return f"{name} is {tuple(tensor.shape)}, not {tuple(size)}"
        if tensor.dtype != dtype:
            return f"{name} is {str(tensor.dtype)[6:]}, not {str(dtype)[6:]}"
    for index, code in enumerate(codes):
        count, active = int(stats.count[index]), stats.active[index]
        if count < 1:
            return f"its count of {code!r} is {count} tokens"
        for name in ("mean", "m2"):
            if not getattr(stats, name)[index].isfinite().all():
                return f"{name} of {code!r} is not finite"
        if (stats.m2[index] < 0).any():
            return f"m2 of {code!r} is below 0"
        if (active < 0).any() or (active > count).any():
            return f"active of {code!r} is not within 0 and its {count} tokens"
    if groups is not None:
        sums = torch.equal(groups.count.sum(0), stats.count) and torch.equal(groups.active.sum(0).long(), stats.active)
        if not sums or not groups.mean.isfinite().all() or (groups.count < 0).any() or (groups.active < 0).any():
            return "its groups of questions do not add up to the whole"
    return None


def _spread(stats: ActivationStats, languages: tuple[str, ...]) -> ActivationStats:
    """The same statistics over more languages, zero for those not seen; always fresh tensors."""
    rows = torch.tensor([languages.index(code) for code in stats.languages])

    def spread(tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = len(languages)
        return tensor.new_zeros(shape).index_copy_(dim, rows, tensor)

    groups = stats.groups
    if groups is not None:
        groups = QuestionGroups(*(spread(getattr(groups, name), 1) for name in ("count", "mean", "active")))
    count, mean, m2, active = (spread(getattr(stats, name), 0) for name in ("count", "mean", "m2", "active"))
    return replace(stats, languages=languages, count=count, mean=mean, m2=m2, active=active, groups=groups)
