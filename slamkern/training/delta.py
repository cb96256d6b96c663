"""What can be done with a delta after training: scale it, take layers back, blend several, find the best scale.

A delta stores the trained weights themselves, so its change is ``trained - base`` with the base model at hand:

    scale    W = base + s * (trained - base)            s < 1 keeps more of the base model
    revert   W = base in the layers that are taken back, which often forgets less than freezing them from the start
             (arXiv 2505.18356)
    merge    W = base + sum_i s_i * (trained_i - base)   task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)

The results are deltas like any other: for `load_delta`, ``--delta`` and the export. Sums are made in float64, so that a
scale of 1 gives the trained weights back and 0 those of the base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from slamkern.digests import tensor_digests
from slamkern.errors import SlamkernError
from slamkern.files import save_tensors
from slamkern.modules.finite import check_finite
from slamkern.schemas.training import DELTA, read_delta
from slamkern.selection.layers import LayerSelection
from slamkern.training.checkpoint import NAMES, SELECTION, load_delta
from slamkern.training.frozen import changed_weight, other_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slamkern.data.packing import Example

NEURONS = "@neurons"
INDEX = tuple(f"{NEURONS}.{axis}" for axis in NAMES)
Scaled = tuple[str | Path, float]


@dataclass(frozen=True)
class Change:
    """What deltas change in a model: weight name -> base value (dtype of the model), summed difference (float64)."""

    base: dict[str, Tensor]
    difference: dict[str, Tensor]

    @torch.no_grad()
    def apply(self, model: nn.Module, scale: float = 1.0) -> None:
        """Give the changed weights of ``model`` the value ``base + scale * difference``."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, base in self.base.items():
            # A difference that is infinite, times 0, would be NaN.
            parameters[name].copy_(base.double() + scale * self.difference[name] if scale else base)


@torch.no_grad()
def read_change(model: nn.Module, deltas: Sequence[Scaled]) -> Change:
    """The sum of ``(folder, scale)`` deltas over the base model ``model``, which is left as it was.

    Each delta passes the checks of `load_delta` against the base weights, and those it brings are compared with what
    they were before training. Raises SlamkernError for none, for a scale that is not finite, and for a model that has
    the trained weights already.
    """
    if not deltas:
        raise SlamkernError("no delta given")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    base: dict[str, Tensor] = {}
    difference: dict[str, Tensor] = {}
    for folder, scale in deltas:
        check_scale(scale, str(folder))
        path, tensors, metadata = read_delta(folder)
        names = {name.partition(NEURONS)[0] for name in tensors}
        here = {name: parameters[name].clone() for name in names if name in parameters}
        load_delta(model, folder)
        if all(torch.equal(parameters[name], original) for name, original in here.items()):
            raise SlamkernError(f"the model has the weights of {folder} already; give the model it was trained on")
        for name, original in here.items():
            change = scale * (parameters[name].double() - original.double())
            difference[name] = difference[name] + change if name in difference else change
            parameters[name].copy_(original)
        written = {name: digest for name, digest in metadata.frozen_weights.items() if name in here}
        if changed := changed_weight(written, tensor_digests(here), {}):
            raise other_base(path, metadata, changed)
        base |= here
    return Change(base, difference)


def blend_deltas(model: nn.Module, deltas: Sequence[Scaled], out: str | Path) -> Path:
    """Write ``base + sum of scale * (trained - base)`` as a delta into ``out``; ``model`` has the base weights.

    It keeps them. One delta is scaled, several are merged. Single neurons stay single neurons where every delta names
    the same ones, otherwise the whole weights are written. Raises SlamkernError as `read_change` does, for weights that
    would not be finite, and where ``out`` has a delta.
    """
    out = free_folder(out)
    change = read_change(model, deltas)
    stored = [read_delta(folder) for folder, _ in deltas]
    change.apply(model)
    try:
        values = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
        tensors: dict[str, Tensor] = {}
        for name in change.base:
            tensors |= _stored_like(name, values[name], [tensors for _, tensors, _ in stored])
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # before the base comes back
    finally:
        change.apply(model, 0.0)
    check_finite(tensors, "nothing was saved; use scales of a smaller size")
    selections = [LayerSelection.load(path) for folder, _ in deltas if (path := _beside(folder)).is_file()]
    if selections:
        _merged(selections).save(out / SELECTION)
    made_from = [{"delta": str(folder), "scale": scale} for folder, scale in deltas]
    save_tensors(out / DELTA, tensors, stored[0][2].model_dump() | {"made_from": made_from})
    return out / DELTA


def revert_layers(folder: str | Path, layers: Sequence[int], out: str | Path) -> Path:
    """Write the delta in ``folder`` without these layers into ``out``: they are those of the base model again.

    Needs no model. SlamkernError for a layer that the delta does not change, and for all of them.
    """
    out = free_folder(out)
    _, tensors, metadata = read_delta(folder)
    changed = sorted({_layer(name) for name in tensors})
    if unknown := [layer for layer in layers if layer not in changed]:
        raise SlamkernError(f"{folder} does not change layers {_listed(unknown)}; it changes {_listed(changed)}")
    if not layers or set(layers) == set(changed):
        what = "no layer given" if not layers else f"that takes back all layers of {folder}, and nothing is left"
        raise SlamkernError(f"{what}; it changes {_listed(changed)}")
    kept = {name: tensor for name, tensor in tensors.items() if _layer(name) not in layers}
    if (path := _beside(folder)).is_file():
        selection = LayerSelection.load(path)
        left = tuple(layer for layer in selection.layers if layer not in layers)
        neurons = selection.neurons and {layer: ids for layer, ids in selection.neurons.items() if layer in left}
        replace(selection, layers=left, k=len(left), neurons=neurons).save(out / SELECTION)
    made_from = [{"delta": str(folder), "reverted_layers": sorted(layers)}]
    save_tensors(out / DELTA, kept, metadata.model_dump() | {"made_from": made_from})
    return out / DELTA


def sweep_scale(
    model: "PreTrainedModel", folder: str | Path, examples: Sequence["Example"], scales: Sequence[float]
) -> dict[float, float]:
    """Held-out loss (nats a token) of the base model with the delta at each scale; the model is left as it was."""
    from slamkern.training.batches import mean_loss

    change = read_change(model, [(folder, 1.0)])
    losses = {}
    try:
        for scale in scales:
            change.apply(model, scale)
            losses[scale] = mean_loss(model, examples)
    finally:
        change.apply(model, 0.0)
    return losses


def check_scale(scale: float, what: str) -> None:
    """SlamkernError for a scale of ``what`` that is not finite."""
    if not abs(scale) < float("inf"):
        raise SlamkernError(f"the scale of {what} is {scale}; expected a finite number")


def _beside(folder: str | Path) -> Path:
    return (Path(folder) if Path(folder).is_dir() else Path(folder).parent) / SELECTION


def free_folder(out: str | Path) -> Path:
    """The folder ``out``; SlamkernError where it has a delta."""
    out = Path(out)
    if (out / DELTA).exists():
        raise SlamkernError(f"{out / DELTA} exists; choose another folder or remove it")
    return out


def _stored_like(name: str, value: Tensor, stored: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that store ``value``: rows or columns of it where all deltas that have it store the same ones."""
    indices = [
        (dim, tensors.get(f"{name}{suffix}"))
        for tensors in stored
        if name in tensors or f"{name}{NEURONS}" in tensors
        for dim, suffix in enumerate(INDEX)
        if name in tensors or f"{name}{suffix}" in tensors
    ]
    dim, first = indices[0]
    if first is None or not all(other is not None and torch.equal(first, other) for _, other in indices):
        return {name: value}
    return {
        f"{name}{NEURONS}": value.index_select(dim, first.to(value.device)),
        f"{name}{INDEX[dim]}": first,
    }


def _merged(selections: Sequence[LayerSelection]) -> LayerSelection:
    first = selections[0]
    layers = tuple(sorted({layer for selection in selections for layer in selection.layers}))
    if all(selection.layers == first.layers and selection.neurons == first.neurons for selection in selections):
        return first
    return LayerSelection(
        layers, k=len(layers), rule="merged", model=first.model, signature=first.signature, num_layers=first.num_layers
    )


def _layer(name: str) -> int:
    """``model.layers.11.mlp.up_proj.weight`` is of layer 11: the first part of its name that is a number."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if not numbers:
        raise SlamkernError(f"the delta changes {name}, which is of no layer; layers cannot be taken back from it")
    return numbers[0]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
