"""Finding the FFNs of a model by what their forward computes, not by their names.

Each candidate (a module that has an activation and at least two projections as direct children) is traced and its graph
compared with the three shapes that ffn.py can fuse (ffn_shape.py); a module of another shape is left alone.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn

from slamkern.errors import SlamkernError
from slamkern.modules.ffn import FFN, Fused
from slamkern.modules.ffn_shape import is_activation, is_projection, shapes, summary, trace
from slamkern.modules.match import Match, decoder_of, replaced_forward
from slamkern.modules.surgery import unextended
from slamkern.ops import ACTIVATIONS, reference


def find_ffns(model: nn.Module, *, shared_experts: bool = False) -> list[Match[FFN]]:
    """Every FFN candidate of the model's text decoder, in order of depth; a patched one is reported as it was found.

    One whose activation module is another now is reported as what it would be fused to.

    shared_experts: take an FFN that runs beside routed experts for the FFN of its layer.
    """
    prefix, decoder = decoder_of(model)
    modules = dict(_outside_mixers(decoder))
    matches: list[Match[FFN]] = []
    for relative, module in modules.items():
        if isinstance(module, Fused) and not module.fits():
            match, old = _examine(relative, unextended(module), prefix), module.slamkern_ffn
            kept = {name: getattr(old, name) for name in ("backend", "recompute", "recording", "trained")}
            part = None if match.part is None else replace(match.part, **kept)
            matches.append(replace(match, block=module, module=module, part=part))
        elif isinstance(module, Fused):
            block = relative if module.slamkern_ffn.kind != "plain" else relative.rpartition(".")[0]
            reason = replaced_forward(module) or replaced_forward(modules[block])
            matches.append(Match(block, modules[block], module, module.slamkern_ffn, reason))
        elif _has_experts(module):
            matches.append(Match(relative, module, module, None, "mixture of experts: tokens reach different experts"))
        elif _is_candidate(module) or _hides_its_activation(relative, module):
            if _is_around_another(module):
                continue
            match = _examine(relative, module, prefix)
            parent = modules[relative.rpartition(".")[0]]
            if match.reason is None and not shared_experts and _routes(parent):
                reason = (
                    "shared expert beside routed ones; patch_model(shared_experts=True) takes it for the layer's FFN"
                )
                match = replace(match, part=None, reason=reason)
            matches.append(match)
    matches = _of_the_decoder_itself(decoder, matches) or _spread_or_bare(decoder)
    return [replace(match, path=f"{prefix}.{match.path}".strip(".")) for match in matches]


def _of_the_decoder_itself(decoder: nn.Module, matches: list[Match[FFN]]) -> list[Match[FFN]]:
    """Without those of encoders (of images, of sound) inside the decoder, where it has a list of layers of its own."""
    lists = tuple(f"{name}." for name, child in decoder.named_children() if isinstance(child, nn.ModuleList))
    own = [match for match in matches if match.path.startswith(lists)]
    return own if any(match.reason is None for match in own) else matches


def _spread_or_bare(decoder: nn.Module) -> list[Match[FFN]]:
    """Where there is nothing else: modules with an activation beside one projection, or beside weights of their own."""
    matches: list[Match[FFN]] = []
    for path, module in decoder.named_modules():
        children = list(module.children())
        if not path or not any(map(is_activation, children)):
            continue
        reason = None
        if sum(map(is_projection, children)) == 1:
            reason = "is half an FFN: its other projection is in another module"
        elif sum(parameter.dim() == 2 for parameter in module.parameters(recurse=False)) >= 2:
            reason = "multiplies by parameters of its own; an FFN has its projections as modules"
        if reason is not None:
            matches.append(Match(path, module, module, None, f"{type(module).__name__} {reason}"))
    return matches


def by_layer(matches: Iterable[Match[FFN]]) -> dict[int, Match[FFN]]:
    """The one known FFN of each layer; SlamkernError where a layer has two, or two layers share one."""
    layers: dict[int, Match[FFN]] = {}
    paths: dict[int, str] = {}
    for match in matches:
        if match.part is None:
            continue
        layer = match.part.layer
        if layer in layers:
            raise SlamkernError(
                f"layer {layer} has two FFNs: {layers[layer].path} and {match.path}; expected one a layer"
            )
        if id(match.module) in paths:
            raise SlamkernError(f"{paths[id(match.module)]} and {match.path} share one module; expected their own")
        layers[layer], paths[id(match.module)] = match, match.path
    return layers


def _has_experts(module: nn.Module) -> bool:
    """Whether weights of several FFNs are stacked in a module, or in modules of its own for each stack."""
    own = list(module.parameters(recurse=False))
    leaves = [child for child in module.children() if not any(child.children()) and not _convolves(child)]
    for parameters in own, [parameter for leaf in leaves for parameter in leaf.parameters()]:
        stacks = {parameter.shape for parameter in parameters if parameter.dim() == 3 and parameter.shape[0] > 1}
        # Of as many FFNs two shapes, or an activation beside one; heads in an attention (XLNet) have one shape alone.
        if len(stacks) > len({shape[0] for shape in stacks}) or (stacks and any(map(is_activation, module.children()))):
            return True
    return False


def _routes(module: nn.Module) -> bool:
    """Whether there are routed experts in a module: stacked in one below it, or a list of FFNs."""
    inner = [child for _, child in _outside_mixers(module)][1:]
    return any(
        _has_experts(child) or (isinstance(child, nn.ModuleList) and any(map(_is_candidate, child))) for child in inner
    )


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d)


def _outside_mixers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by path, ``module`` first, without the mixers of state-space layers: those convolve over tokens."""
    mixers: tuple[str, ...] = ()
    for path, child in module.named_modules():
        if path.startswith(mixers):
            continue
        if path and any(map(_convolves, child.children())) and not _is_around_another(child):
            mixers += (f"{path}.",)
            continue
        yield path, child


def _is_around_another(module: nn.Module) -> bool:
    """Whether a candidate only looks like one, as a decoder layer with gates of its own around its FFN does."""
    inner = list(module.modules())[1:]
    return any(
        _is_candidate(child) or (isinstance(child, Fused) and child.slamkern_ffn.kind != "plain") for child in inner
    )


def _hides_its_activation(path: str, module: nn.Module) -> bool:
    """Whether this is what models call their FFN, though nothing in it is known as an activation."""
    children = list(module.children())
    named = path.rpartition(".")[2] in ("mlp", "ffn", "feed_forward")
    known = any(is_activation(child) for child in children) or _library(module) == "liger_kernel" or _routes(module)
    return named and not known and sum(map(is_projection, children)) > 1


def _library(module: nn.Module) -> str:
    return type(module).__module__.split(".")[0]


def _is_candidate(module: nn.Module) -> bool:
    children = list(module.children())
    if _library(module) == "liger_kernel":
        return sum(map(is_projection, children)) >= 2
    # A patched activation inside makes its block a finding of its own, already reported.
    return (
        any(is_activation(child) and not isinstance(child, Fused) for child in children)
        and sum(is_projection(child) for child in children) >= 2
    )


def _examine(path: str, module: nn.Module, prefix: str) -> Match[FFN]:
    """What a candidate at ``path`` in the decoder is, which is at ``prefix`` in the model."""

    def refused(reason: str) -> Match[FFN]:
        return Match(path, module, module, None, reason)

    if reason := replaced_forward(module):
        return refused(reason)
    if _library(module) == "liger_kernel":
        name = type(module).__name__
        return refused(f"{name} of liger_kernel computes it; build the model without Liger's swiglu or geglu")
    try:
        graph = trace(module)
    except Exception as error:  # fx raises many types: whatever it cannot follow is not an FFN we know
        return refused(f"{type(module).__name__}.forward cannot be traced ({type(error).__name__})")
    shape = next(shapes(graph, module), None)
    if shape is None and _hides_its_activation(path, module):
        return refused(f"{type(module).__name__} has no activation that could be read")
    if shape is None:
        return refused(f"{type(module).__name__}.forward is not a known FFN: {summary(graph)}")
    if ".experts." in f".{path}.":
        return refused("mixture of experts: tokens reach different experts")
    act = module if shape.act is None else module.get_submodule(shape.act)
    activation = identify_activation(act) if shape.function is None else named_activation(shape.function)
    if activation is None:
        return refused(f"unknown activation {type(act).__name__}; known: {', '.join(ACTIVATIONS)}")
    layers = [int(part) for part in path.split(".") if part.isdigit()]
    if len(layers) != 1:
        return refused("its path does not name one layer")
    neurons = _neurons(module.get_submodule(shape.down))
    where = f"{prefix}.{path}".strip(".")
    fields = {name: value for name, value in shape._asdict().items() if name != "function"}
    ffn = FFN(path=where, layer=layers[0], activation=activation, neurons=neurons, act_module=act, **fields)
    reasons = (_unusable(name, getattr(module, name).weight) for name in (shape.gate, shape.up, shape.down) if name)
    return Match(path, module, act if shape.kind == "plain" else module, ffn, next(filter(None, reasons), None))


def _unusable(name: str, weight: torch.Tensor) -> str | None:
    if weight.device.type == "meta":
        return f"{name}.weight is on the meta device; load the weights first"
    if not weight.is_floating_point() or weight.element_size() < 2:
        return f"{name}.weight is quantized ({weight.dtype}); load the model in float32, bfloat16 or float16"
    return None


def _neurons(down: nn.Module) -> int:
    # Linear keeps (out, in); transformers' Conv1D keeps (in, out) and calls its output width nf.
    weight: torch.Tensor = down.weight  # type: ignore[assignment]
    return weight.shape[0] if hasattr(down, "nf") else weight.shape[1]


def identify_activation(module: nn.Module) -> str | None:
    """The name in ``ACTIVATIONS`` of what a module computes, or None; decided by its values."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    return named_activation(functools.partial(type(module).forward, module))  # without hooks, which run with the model


def named_activation(function: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """The name in ``ACTIVATIONS`` of a function, or None; decided by its values."""
    points = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    with torch.no_grad():
        values = function(points)
    for name in ACTIVATIONS:
        # FastGELU rounds sqrt(2/pi) to ten digits; exact and tanh GELU differ by 5e-4.
        if torch.allclose(values, reference.activate(points, name), rtol=0, atol=1e-7):
            return name
    return None
