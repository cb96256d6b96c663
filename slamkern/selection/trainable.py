"""Which parameters a selection trains: exactly those get ``requires_grad``, everything else is frozen.

A selection of single neurons trains their rows of up_proj and columns of down_proj (modules/trained_neurons.py): the
weights themselves stay frozen then, and the rows and columns are the parameters. Where gate and up are halves of one
weight, ``up`` without ``gate`` is such a selection, of all rows of one half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slamkern.errors import SlamkernError, refuse_string
from slamkern.modules.ffn import FFN, Fused, train_neurons
from slamkern.modules.ffn_match import by_layer, find_ffns
from slamkern.modules.trained_neurons import TrainedNeurons, check_unsharded, is_part, part
from slamkern.probe.stats import model_signature
from slamkern.selection.layers import LayerSelection, check_layers

PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True)
class Trainable:
    """One trained tensor: its state_dict name, the parameter, and the layer and projection it belongs to.

    With ``neurons`` (selected,) int64 the parameter stands for those rows of an up projection (selected, hidden_size)
    or columns of a down projection (hidden_size, selected), and the name ends in ``@neurons``.
    """

    name: str
    parameter: nn.Parameter
    layer: int
    projection: str
    neurons: Tensor | None = field(default=None, compare=False)


def apply_selection(
    model: nn.Module, selection: LayerSelection | Sequence[int], projections: Sequence[str] = ("up", "down")
) -> list[Trainable]:
    """Let the weights of ``projections`` in the selected layers be trained, these and no others; return them.

    Works on patched and unpatched models, also on the meta device; a selection of single neurons needs a patched one.
    Biases stay frozen, as in SLAM. Raises SlamkernError, before anything is changed, for layers the model does not
    have, a selection made for another model, or a projection that cannot be trained by itself.
    """
    refuse_string(projections, "projections")
    chosen, ffns = choose(model, selection, projections)
    layers = list(dict.fromkeys(trainable.layer for trainable in chosen))
    neurons = selection.neurons if isinstance(selection, LayerSelection) else None
    halves = {layer for layer in layers if is_half(ffns[layer], projections)}
    blocks = _blocks(model, layers if neurons is not None else sorted(halves), neurons is not None)
    before = [module for module in model.modules() if isinstance(module, Fused) and module.slamkern_ffn.trained]
    for module in (*before, *blocks.values()):
        check_unsharded(module)
    model.requires_grad_(False)
    for module in before:
        train_neurons(module, None)
    if neurons is None:
        for trainable in chosen:
            trainable.parameter.requires_grad_(trainable.layer not in halves or trainable.projection != "up")
        if not halves:
            return chosen
    for layer, block in blocks.items():
        here = {t.projection: t.parameter for t in chosen if t.layer == layer}
        ffn = block.slamkern_ffn
        index = torch.tensor(range(ffn.neurons) if neurons is None else neurons[layer])
        index = index.to(next(iter(here.values())).device)
        first = ffn.neurons if ffn.kind == "gate_up" and ffn.gate_first else 0
        train_neurons(block, TrainedNeurons(index, first), here.get("up"), here.get("down") if neurons else None)
    return trainable_tensors(model)


def trained_sizes(
    model: nn.Module, selection: LayerSelection | Sequence[int], projections: Sequence[str] = ("up", "down")
) -> list[int]:
    """Numbers of elements of the tensors that :func:`apply_selection` would return for the model once it is patched.

    Nothing is changed, and the model may be unpatched and on the meta device. SlamkernError as there.
    """
    chosen, ffns = choose(model, selection, projections)
    neurons = selection.neurons if isinstance(selection, LayerSelection) else None
    sizes = []
    for trainable in chosen:
        ffn, size = ffns[trainable.layer], trainable.parameter.numel()
        if trainable.projection == "up" and is_half(ffn, projections):
            size //= 2
        sizes.append(size if neurons is None else size // ffn.neurons * len(neurons[trainable.layer]))
    return sizes


def choose(
    model: nn.Module, selection: LayerSelection | Sequence[int], projections: Sequence[str] = ("up", "down")
) -> tuple[list[Trainable], dict[int, FFN]]:
    """(the whole weights that what a selection trains is in, the FFN of each layer), after checking that it can be.

    Changes nothing; raises as :func:`apply_selection` does.
    """
    matches = by_layer(find_ffns(model))
    if not matches:
        raise SlamkernError(f"{type(model).__name__} has no FFN that slamkern knows; explain(model) says why")
    layers = _layers(model, selection, max(matches) + 1)
    unknown = [name for name in projections if name not in PROJECTIONS]
    if unknown or not projections:
        raise SlamkernError(f"unknown projections {list(unknown or projections)}; known: {' '.join(PROJECTIONS)}")
    ffns = {layer: match.part for layer, match in matches.items() if match.part is not None}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen: list[Trainable] = []
    for layer in layers:
        if layer not in ffns:
            raise SlamkernError(f"layer {layer} has no FFN that slamkern knows; explain(model) says why")
        for projection, linear in _linears(ffns[layer], projections).items():
            parameter: Any = getattr(matches[layer].block, linear).weight
            if not parameter.is_floating_point():
                raise SlamkernError(f"{names[id(parameter)]} is {parameter.dtype}; quantized weights cannot be trained")
            chosen.append(Trainable(names[id(parameter)], parameter, layer, projection))
    if isinstance(selection, LayerSelection) and selection.neurons is not None:
        _check_neurons(ffns, layers, projections, selection.neurons)
    return chosen, ffns


def _check_neurons(
    ffns: Mapping[int, FFN], layers: Sequence[int], projections: Sequence[str], neurons: Mapping[int, Sequence[int]]
) -> None:
    if "gate" in projections:
        raise SlamkernError("single neurons train rows of up and columns of down; leave 'gate' out of projections")
    for layer in layers:
        if ffns[layer].kind == "plain":
            raise SlamkernError(f"single neurons of layer {layer} need an FFN with a gate")
        width, chosen = ffns[layer].neurons, neurons.get(layer, ())
        if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= n < width for n in chosen):
            raise SlamkernError(f"the selected neurons of layer {layer} must be distinct and from 0 to {width - 1}")


def is_half(ffn: FFN, projections: Sequence[str]) -> bool:
    """Whether ``up`` is trained and is half of a weight that holds the frozen gate, too."""
    return ffn.kind == "gate_up" and "up" in projections and "gate" not in projections


def _blocks(model: nn.Module, layers: Sequence[int], single: bool) -> dict[int, Fused]:
    """The fused block of each layer of which ``single`` neurons are trained, or those of one half of a weight."""
    blocks = {
        m.slamkern_ffn.layer: m for m in model.modules() if isinstance(m, Fused) and m.slamkern_ffn.kind != "plain"
    }
    for layer in layers:
        if layer not in blocks:
            what = "single neurons" if single else "up without gate, a half of one weight,"
            raise SlamkernError(f"{what} of layer {layer} need a fused FFN with a gate; patch_model first")
    return {layer: blocks[layer] for layer in layers}


def _linears(ffn: FFN, projections: Sequence[str]) -> dict[str, str]:
    """Attribute name of the projection module for each requested projection of one FFN."""
    wanted = set(projections)
    if ffn.kind == "plain" and "gate" in wanted:
        raise SlamkernError(f"{ffn.path} has no gate; train projections from: up down")
    if ffn.kind == "gate_up" and "gate" in wanted and "up" not in wanted:
        raise SlamkernError(f"{ffn.path} keeps gate and up in one weight {ffn.up!r}; train up, or gate and up")
    modules = {"gate": ffn.gate, "up": ffn.up, "down": ffn.down}
    if ffn.kind == "gate_up":
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
    for match in find_ffns(model):
        ffn = match.part
        if ffn is None:
            continue
        for projection in PROJECTIONS:
            linear = getattr(ffn, projection)
            if linear is None:
                continue
            weight: Any = getattr(match.block, linear).weight
            name = names[id(weight)]
            rows = None if ffn.trained is None else part(match.block, projection)
            if ffn.trained is not None and rows is not None:
                where = ffn.trained.rows if projection == "up" else ffn.trained.neurons
                found.append(Trainable(f"{name}@neurons", rows, ffn.layer, projection, where))
            elif weight.requires_grad:
                found.append(Trainable(name, weight, ffn.layer, projection))
    return found


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that is trained: what requires grad, and the tensors of single neurons."""
    single = {t.name: t.parameter for t in trainable_tensors(model) if t.neurons is not None}
    known = {id(parameter) for parameter in single.values()}
    whole = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in known}
    return whole | single


def total_parameters(model: nn.Module) -> int:
    """The number of the model's parameters; single neurons that are trained are in their whole weights already."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not is_part(name))


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters are trained, in PEFT's words: numbers and their share in percent."""
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    total = total_parameters(model)
    share = 100 * trained / total
    print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {share:.4f}")
