"""Which parameters a selection trains: exactly those get ``requires_grad``, everything else is frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from slamkern.discovery import find_ffns
from slamkern.errors import SlamkernError
from slamkern.ffn import FFN
from slamkern.selection import LayerSelection, check_layers
from slamkern.stats import model_signature

PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True)
class Trainable:
    """One trained tensor: its state_dict name, the parameter, and the layer and projection it belongs to."""

    name: str
    parameter: nn.Parameter
    layer: int
    projection: str


def apply_selection(
    model: nn.Module, selection: LayerSelection | Sequence[int], projections: Sequence[str] = ("up", "down")
) -> list[Trainable]:
    """Let the weights of ``projections`` in the selected layers be trained, these and no others; return them.

    Works on patched and unpatched models, also on the meta device. Biases stay frozen, as in SLAM.
    Raises SlamkernError, before anything is changed, for layers the model does not have, a selection made for another
    model, or a projection that cannot be trained by itself.
    """
    ffns = {finding.ffn.layer: finding.ffn for finding in find_ffns(model) if finding.ffn is not None}
    if not ffns:
        raise SlamkernError(f"{type(model).__name__} has no FFN that slamkern knows; explain(model) says why")
    layers = _layers(model, selection, max(ffns) + 1)
    unknown = [name for name in projections if name not in PROJECTIONS]
    if unknown or not projections:
        raise SlamkernError(f"unknown projections {list(unknown or projections)}; known: {' '.join(PROJECTIONS)}")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen: list[Trainable] = []
    for layer in layers:
        if layer not in ffns:
            raise SlamkernError(f"layer {layer} has no FFN that slamkern knows; explain(model) says why")
        for projection, linear in _linears(ffns[layer], projections).items():
            parameter = model.get_submodule(f"{ffns[layer].path}.{linear}").weight
            if not parameter.is_floating_point():
                raise SlamkernError(f"{names[id(parameter)]} is {parameter.dtype}; quantised weights cannot be trained")
            chosen.append(Trainable(names[id(parameter)], parameter, layer, projection))  # type: ignore[arg-type]
    model.requires_grad_(False)
    for trainable in chosen:
        trainable.parameter.requires_grad_(True)
    return chosen


def _linears(ffn: FFN, projections: Sequence[str]) -> dict[str, str]:
    """Attribute name of the projection module for each requested projection of one FFN."""
    wanted = set(projections)
    if ffn.kind == "plain" and "gate" in wanted:
        raise SlamkernError(f"{ffn.path} has no gate; train projections from: up down")
    if ffn.kind == "gated_fused" and len(wanted & {"gate", "up"}) == 1:
        raise SlamkernError(
            f"{ffn.path} keeps gate and up in one weight {ffn.up!r}, which is trained whole or not at all;"
            " use projections gate,up,down or down"
        )
    modules = {"gate": ffn.gate, "up": ffn.up, "down": ffn.down}
    if ffn.kind == "gated_fused":
        wanted.discard("gate")
    return {name: modules[name] for name in PROJECTIONS if name in wanted}  # type: ignore[misc]


def _layers(model: nn.Module, selection: LayerSelection | Sequence[int], num_layers: int) -> Sequence[int]:
    if not isinstance(selection, LayerSelection):
        check_layers(selection, num_layers)
        return sorted(set(selection))
    signature = model_signature(model.config) if hasattr(model, "config") else ""
    if selection.signature and signature and selection.signature != signature:
        raise SlamkernError(
            f"the selection was made for {selection.model or 'a model'} ({selection.signature}),"
            f" this model is {signature}; probe and select again"
        )
    if selection.num_layers and selection.num_layers != num_layers:
        raise SlamkernError(f"the selection is for {selection.num_layers} layers, the model has {num_layers}")
    check_layers(selection.layers, num_layers)
    return selection.layers


def trainable_tensors(model: nn.Module) -> list[Trainable]:
    """The FFN weights of a model that require grad, by depth: what :func:`apply_selection` left trainable."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[Trainable] = []
    for finding in find_ffns(model):
        ffn = finding.ffn
        for projection in PROJECTIONS if ffn is not None else ():
            linear = getattr(ffn, projection)
            parameter = model.get_submodule(f"{ffn.path}.{linear}").weight if linear else None  # type: ignore[union-attr]
            if parameter is not None and parameter.requires_grad:
                found.append(Trainable(names[id(parameter)], parameter, ffn.layer, projection))  # type: ignore[union-attr, arg-type]
    return found
