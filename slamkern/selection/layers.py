"""Choosing layers (and neurons) from scores, and how stable that choice is over resampled questions."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.files import read_checked, write_checked
from slamkern.probe.stats import ActivationStats
from slamkern.schemas.check import check
from slamkern.schemas.selection import SelectionFile
from slamkern.selection.bootstrap import resamples
from slamkern.selection.scores import SCORES, neuron_scores


@dataclass(frozen=True)
class LayerSelection:
    """Which layers to train and why.

    ``scores[layer][language]`` is what ``score_name`` gave (empty where no statistics were used); ``stability[layer]``
    is the share of bootstrap resamples over questions in which the layer is chosen; ``neurons[layer]`` lists the
    selected neurons of a selected layer (None: all of them).
    """

    layers: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...] = ()
    score_name: str = ""
    k: int = 0
    model: str = ""
    signature: str = ""
    languages: tuple[str, ...] = ()
    rule: str = "list"
    num_layers: int = 0
    neurons: Mapping[int, tuple[int, ...]] | None = None
    stability: tuple[float, ...] | None = None

    @classmethod
    def preset(cls, name: str) -> "LayerSelection":
        """One of the authors' selections: slam-7b-paper, slam-7b-script, slam-13b."""
        if name not in PRESETS:
            raise SlamkernError(f"unknown preset {name!r}; known: {' '.join(PRESETS)}")
        return PRESETS[name]

    def save(self, path: str | Path) -> None:
        """Write ``selection.json``, atomically."""
        write_checked(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        neurons = None if self.neurons is None else {str(layer): list(ids) for layer, ids in self.neurons.items()}
        return {
            "layers": list(self.layers),
            "scores": [list(row) for row in self.scores],
            "score": self.score_name,
            "k": self.k,
            "model": self.model,
            "signature": self.signature,
            "languages": list(self.languages),
            "rule": self.rule,
            "num_layers": self.num_layers,
            "neurons": neurons,
            "stability": None if self.stability is None else list(self.stability),
        }

    @classmethod
    def load(cls, path: str | Path) -> "LayerSelection":
        """Read ``selection.json``; anything else is refused."""
        return cls.from_dict(read_checked(path, required=False), str(path))

    @classmethod
    def from_dict(cls, value: Any, where: str = "the selection") -> "LayerSelection":
        """The selection that :meth:`to_dict` gave; SlamkernError names ``where`` and the first field that is wrong."""
        fields = dict(check(SelectionFile, json.dumps(value), f"{where} is not a selection.json"))
        neurons = fields.pop("neurons")
        return cls(
            score_name=fields.pop("score"),
            neurons=None if neurons is None else {int(layer): ids for layer, ids in neurons.items()},
            **fields,
        )


# Layers trained by the authors: 0-5 in the paper and the 13B script; the 7B script lists five.
PRESETS: Mapping[str, LayerSelection] = MappingProxyType(
    {
        "slam-7b-paper": LayerSelection(tuple(range(6)), k=6, rule="preset", num_layers=32),
        "slam-7b-script": LayerSelection(tuple(range(5)), k=5, rule="preset", num_layers=32),
        "slam-13b": LayerSelection(tuple(range(6)), k=6, rule="preset", num_layers=40),
    }
)


def select_layers(
    stats: ActivationStats,
    k: int = 6,
    score: str = "active_msd",
    *,
    rule: str = "top_k",
    region: str = "lower",
    center: str | None = None,
    neuron_fraction: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> LayerSelection:
    """Choose the layers to train from the statistics of a probe.

    Args:
        k: how many layers the rules choose that are not a threshold or a list.
        score: a name in ``slamkern.selection.scores.SCORES``.
        rule: ``"top_k"`` by score; ``"lowest"``, ``"highest"``, ``"ends"`` (both, the odd one below), ``"middle"`` or
            ``"random"`` (with ``seed``) of the region, whatever the score; ``"threshold:X"`` (score at least X);
            ``"list:0,3,5"``.
        region: ``"lower"`` (the first half, where SLAM finds comprehension; the default), ``"upper"``, ``"all"``,
            or ``"A-B"``, both ends included.
        center: deviation from the ``"mean"`` over languages or from ``"en"``; None for the score's own.
        neuron_fraction: within each chosen layer, keep this share of its most language-specific neurons.
        bootstrap: how many times questions are resampled for the stability; needs statistics with groups.
    """
    if score not in SCORES:
        raise SlamkernError(f"unknown score {score!r}; known: {' '.join(SCORES)}")
    center = center or ("en" if score == "english_overlap" else "mean")
    if stats.groups is not None and bootstrap < 0:
        raise SlamkernError(f"bootstrap is {bootstrap}; expected 0 or more")
    values = SCORES[score](stats, center=center)
    allowed = _region(region, stats.num_layers)
    layers = _choose(values.mean(1), allowed, k, rule, seed)
    stability = None
    if stats.groups is not None and bootstrap:
        chosen = torch.zeros(stats.num_layers, dtype=torch.int64)
        generator = torch.Generator().manual_seed(seed)
        for resampled in resamples(stats, bootstrap, generator, with_means=score == "mean_msd"):
            chosen[list(_choose(SCORES[score](resampled, center=center).mean(1), allowed, k, rule, seed))] += 1
        stability = tuple((chosen / bootstrap).tolist())
    selection = LayerSelection(
        layers=layers,
        scores=tuple(map(tuple, values.tolist())),
        score_name=score,
        k=len(layers),
        model=stats.model,
        signature=stats.signature,
        languages=stats.languages,
        rule=rule,
        num_layers=stats.num_layers,
        stability=stability,
    )
    if neuron_fraction is None:
        return selection
    return replace(selection, neurons=_choose_neurons(neuron_scores(stats, score, center), layers, neuron_fraction))


def choose_before_probe(
    num_layers: int, k: int, rule: str, region: str, preset: str | None = None, *, seed: int = 0
) -> tuple[int, ...]:
    """As many layers as :func:`select_layers` would choose of a model without knowing its scores, or the preset's.

    Refuses what it would refuse; a threshold takes its whole region.
    """
    if preset is not None:
        check_layers(layers := LayerSelection.preset(preset).layers, num_layers)
        return layers
    return _choose(torch.full((num_layers,), torch.inf), _region(region, num_layers), k, rule, seed)


def choose_by_score(scores: Sequence[float], k: int, region: str = "all") -> tuple[int, ...]:
    """The ``k`` layers of the region with the largest scores, one a layer."""
    return _choose(torch.tensor(scores, dtype=torch.float64), _region(region, len(scores)), k, "top_k", 0)


# Rules that go by the place of a layer in the region, whatever its score: published answers name each of them.
_PLACES: Mapping[str, Callable[[list[int], int], list[int]]] = MappingProxyType(
    {
        "lowest": lambda layers, k: layers[:k],
        "highest": lambda layers, k: layers[len(layers) - k :],
        "ends": lambda layers, k: [*layers[: k - k // 2], *layers[len(layers) - k // 2 :]],
        "middle": lambda layers, k: layers[(len(layers) - k) // 2 :][:k],
    }
)
WITHOUT_SCORES = (*_PLACES, "random", "list")


def _choose(scores: Tensor, allowed: Sequence[int], k: int, rule: str, seed: int) -> tuple[int, ...]:
    name, _, argument = rule.partition(":")
    if name in ("top_k", "random", *_PLACES):
        if argument:
            raise SlamkernError(f"rule {rule!r} takes no argument; k says how many")
        if not 1 <= k <= len(allowed):
            raise SlamkernError(
                f"k is {k}; the region has {len(allowed)} of {len(scores)} layers: choose k from 1 to {len(allowed)}"
            )
        if name == "random":
            return tuple(sorted(random.Random(seed).sample(list(allowed), k)))
        if name in _PLACES:
            return tuple(sorted(_PLACES[name](list(allowed), k)))
        return tuple(sorted(sorted(allowed, key=lambda layer: (-float(scores[layer]), layer))[:k]))
    if name == "threshold":
        try:
            threshold = float(argument)
        except ValueError:
            raise SlamkernError(f"rule {rule!r} needs a number, as in 'threshold:0.5'") from None
        layers = tuple(layer for layer in allowed if float(scores[layer]) >= threshold)
        if not layers:
            best = max(float(scores[layer]) for layer in allowed)
            raise SlamkernError(f"no layer scores {threshold} or more; the highest score in the region is {best:.6g}")
        return layers
    if name == "list":
        return _listed(argument, len(scores))
    raise SlamkernError(f"unknown rule {rule!r}; known: top_k {' '.join(_PLACES)} random threshold:X list:0,3,5")


def _listed(argument: str, num_layers: int) -> tuple[int, ...]:
    try:
        layers = tuple(sorted({int(part) for part in argument.split(",")}))
    except ValueError:
        raise SlamkernError(f"layers {argument!r} are not numbers; expected as in 'list:0,3,5'") from None
    check_layers(layers, num_layers)
    return layers


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuse layer ids that the model does not have."""
    outside = [layer for layer in layers if not 0 <= layer < num_layers]
    if outside or not layers:
        named = ", ".join(map(str, outside)) or "none"
        raise SlamkernError(f"layers out of range: {named}; the model has layers 0 to {num_layers - 1}")


def _region(region: str, num_layers: int) -> range:
    middle = (num_layers + 1) // 2
    named = {"all": range(num_layers), "lower": range(middle), "upper": range(middle, num_layers)}
    if region in named:
        return named[region]
    first, _, last = region.partition("-")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last) < num_layers):
        raise SlamkernError(f"unknown region {region!r}; known: lower upper all, or A-B within 0-{num_layers - 1}")
    return range(int(first), int(last) + 1)


def _choose_neurons(scores: Tensor, layers: Sequence[int], fraction: float) -> dict[int, tuple[int, ...]]:
    if not 0 < fraction <= 1:
        raise SlamkernError(f"neuron_fraction is {fraction}; expected more than 0 and at most 1")
    keep = max(1, round(fraction * scores.shape[1]))
    return {layer: tuple(sorted(scores[layer].topk(keep).indices.tolist())) for layer in layers}
