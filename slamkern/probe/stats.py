"""ActivationStats: per language, layer and neuron, how FFN neurons behave over the tokens of a corpus.

The file is safetensors: ``count`` int64 [languages], ``mean`` and ``m2`` float64 and ``active`` int64
[languages, layers, neurons], with the languages, the model and the observed tensor as metadata. Where questions were
put into groups, ``group_*`` tensors hold the same per group (mean in float32): resampling groups of questions is
what tells how stable a selection is. Two files of one model merge exactly (Chan's parallel formula in float64).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.files import load_tensors, save_tensors
from slamkern.ops.moments import merge_
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
        """Write the statistics to a safetensors file, atomically."""
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
        """Read statistics; a foreign, truncated or inconsistent file is refused."""
        tensors, metadata = load_tensors(path, "statistics")
        try:
            languages = tuple(metadata["languages"])
            count, mean, m2, active = (tensors[name] for name in ("count", "mean", "m2", "active"))
            names = [name for name in tensors if name.startswith("group_")]
            groups = QuestionGroups(*(tensors[f"group_{n}"] for n in ("count", "mean", "active"))) if names else None
            stats = cls(
                languages, metadata["model"], metadata["signature"], metadata["observe"],
                count, mean, m2, active, groups,
            )  # fmt: skip
        except KeyError as error:
            raise SlamkernError(f"{path} is not a statistics file: {error.args[0]!r} is missing") from error
        shape = (len(languages), *mean.shape[1:])
        if count.shape != shape[:1] or mean.dim() != 3 or any(t.shape != shape for t in (mean, m2, active)):
            raise SlamkernError(f"{path} is inconsistent: {len(languages)} languages, mean {tuple(mean.shape)}")
        return stats


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
