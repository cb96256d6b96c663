"""Selections to and from other tools: axolotl and Spectrum out, published masks of language-specific neurons in.

axolotl's ``unfrozen_parameters`` (a YAML list of regular expressions, matched from the start of a parameter's name) is
also the file that Spectrum (arXiv 2406.06623) writes, so one text serves both.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import choose, is_half


def unfrozen_parameters(
    model: nn.Module, selection: LayerSelection, projections: Sequence[str] = ("up", "down")
) -> str:
    """The YAML with which axolotl trains exactly what a selection trains; needs no weights and changes none.

    SlamkernError where that is not whole weights: single neurons, or ``up`` without ``gate`` where they share one.
    """
    if selection.neurons is not None:
        raise SlamkernError("unfrozen_parameters name whole weights, and this selection is of single neurons")
    chosen, ffns = choose(model, selection, projections)
    halves = (t.name for t in chosen if t.projection == "up" and is_half(ffns[t.layer], projections))
    if half := next(halves, None):
        raise SlamkernError(
            f"unfrozen_parameters name whole weights, and up is half of {half}; choose projections gate, up, down"
        )
    names = [trainable.name for trainable in chosen]
    return yaml.safe_dump({"unfrozen_parameters": [f"^{re.escape(name)}$" for name in names]}, width=1000)


def read_lape_mask(path: str | Path, languages: Sequence[str], *, mask_languages: Sequence[str]) -> LayerSelection:
    """The neurons that a published LAPE mask gives to ``languages``: the layers that have some, with these neurons.

    The file is what the code of Tang et al. 2024 (arXiv 2402.16438) and its followers save with torch: per language
    a list over layers of int64 neuron ids. It does not say which languages, so ``mask_languages`` names them in its
    order. Only tensors are unpickled. SlamkernError for another content, or languages that it does not have.
    """
    path = Path(path)
    try:
        mask = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises as many kinds as there are ways for a file to be wrong
        raise SlamkernError(f"{path} is not a mask saved by torch ({type(error).__name__})") from error
    if not _is_mask(mask):
        raise SlamkernError(f"{path} is not a LAPE mask: expected, for each language, a list over layers of neuron ids")
    if len(mask) != len(mask_languages):
        raise SlamkernError(f"{path} has {len(mask)} languages, and {len(mask_languages)} are named")
    missing = [code for code in languages if code not in mask_languages]
    if missing or not languages:
        raise SlamkernError(
            f"{path} has no {' '.join(missing) or 'language to choose'}; it has {' '.join(mask_languages)}"
        )
    chosen = [mask[list(mask_languages).index(code)] for code in languages]
    found = {
        layer: sorted({int(neuron) for language in chosen for neuron in language[layer]})
        for layer in range(len(mask[0]))
    }
    neurons = {layer: tuple(ids) for layer, ids in found.items() if ids}
    if not neurons:
        raise SlamkernError(f"{path} gives no neuron to {' '.join(languages)}")
    return LayerSelection(
        tuple(neurons), k=len(neurons), languages=tuple(languages), rule="lape mask", num_layers=len(mask[0]),
        neurons=neurons,
    )  # fmt: skip


def _is_mask(mask: object) -> bool:
    if (
        not isinstance(mask, list | tuple)
        or not mask
        or not all(isinstance(language, list | tuple) for language in mask)
    ):
        return False
    layers = [layer for language in mask for layer in language]
    same = len({len(language) for language in mask}) == 1
    return (
        same and bool(layers) and all(isinstance(t, Tensor) and t.dtype == torch.int64 and t.dim() == 1 for t in layers)
    )
