"""Finding the FFNs of a model by what their forward computes, not by their names.

Each candidate (a module that has an activation and at least two projections as direct children) is traced with
``torch.fx``, children as leaves, and its graph is compared with the three shapes that ffn.py can fuse. A multiplier,
a clamp, an active dropout or any other extra operation shows up as an extra node, and the module is refused.
"""

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from slamkern.modules.ffn import FFN, Fused
from slamkern.ops import reference

_ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")


@dataclass(frozen=True)
class Finding:
    """A candidate: its module path, the module to extend, its :class:`FFN`, or the reason why it cannot be fused.

    A block of a known shape whose weights cannot be computed with (meta device, quantised) has both.
    """

    path: str
    module: nn.Module
    ffn: FFN | None
    reason: str | None


def decoder_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The text decoder of a model and its path in it; the model itself where it names none."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder is not None else model
    if isinstance(decoder, nn.Module):
        for path, module in model.named_modules():
            if module is decoder:
                return path, decoder
    return "", model


def find_ffns(model: nn.Module) -> list[Finding]:
    """Every FFN candidate of the model's text decoder, in order of depth; a patched one is reported as it was found."""
    prefix, decoder = decoder_of(model)
    findings = []
    for relative, module in decoder.named_modules():
        path = f"{prefix}.{relative}".strip(".")
        if isinstance(module, Fused):
            findings.append(Finding(module.slamkern_ffn.path, module, module.slamkern_ffn, None))
        elif _has_experts(module):
            findings.append(Finding(path, module, None, "mixture of experts: tokens reach different experts"))
        elif _is_candidate(module):
            findings.append(_examine(path, module))
    return findings


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in _ACTIVATION_MODULES


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _has_experts(module: nn.Module) -> bool:
    stacked = any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
    return stacked and any(_is_activation(child) for child in module.children())


def _is_candidate(module: nn.Module) -> bool:
    children = list(module.children())
    # A patched activation inside makes its block a finding of its own, already reported.
    return (
        any(_is_activation(child) and not isinstance(child, Fused) for child in children)
        and sum(_is_projection(child) for child in children) >= 2
    )


def _examine(path: str, module: nn.Module) -> Finding:
    try:
        graph = _trace(module)
    except Exception as error:  # fx raises many types: whatever it cannot follow is not an FFN we know
        return Finding(path, module, None, f"its forward cannot be traced ({type(error).__name__})")
    match = next(_matches(graph, module), None)
    if match is None:
        return Finding(path, module, None, f"{type(module).__name__}.forward is not a known FFN: {_summary(graph)}")
    kind, gate, up, down, act, gate_first = match
    if ".experts." in f".{path}.":
        return Finding(path, module, None, "mixture of experts: tokens reach different experts")
    activation = identify_activation(module.get_submodule(act))
    if activation is None:
        known = ", ".join(reference.ACTIVATIONS)
        return Finding(
            path, module, None, f"unknown activation {type(module.get_submodule(act)).__name__}; known: {known}"
        )
    layers = [int(part) for part in path.split(".") if part.isdigit()]
    if len(layers) != 1:
        return Finding(path, module, None, "its path does not name one layer")
    neurons = _neurons(module.get_submodule(down))
    ffn = FFN(path, layers[0], kind, gate, up, down, act, activation, neurons, gate_first)
    reasons = (_unusable(name, getattr(module, name).weight) for name in (gate, up, down) if name)
    reason = next(filter(None, reasons), None)
    return Finding(path, module.get_submodule(act) if kind == "plain" else module, ffn, reason)


def _unusable(name: str, weight: torch.Tensor) -> str | None:
    if weight.device.type == "meta":
        return f"{name}.weight is on the meta device; load the weights first"
    if not weight.is_floating_point() or weight.element_size() < 2:
        return f"{name}.weight is quantised ({weight.dtype}); load the model in float32, bfloat16 or float16"
    return None


def _neurons(down: nn.Module) -> int:
    # Linear keeps (out, in); transformers' Conv1D keeps (in, out) and calls its output width nf.
    weight: torch.Tensor = down.weight  # type: ignore[assignment]
    return weight.shape[0] if hasattr(down, "nf") else weight.shape[1]


def identify_activation(module: nn.Module) -> str | None:
    """The name in ``reference.ACTIVATIONS`` of what a module computes, or None; decided by its values."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    points = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    with torch.no_grad():
        values = module(points)
    for name in reference.ACTIVATIONS:
        # FastGELU rounds sqrt(2/pi) to ten digits; exact and tanh GELU differ by 5e-4.
        if torch.allclose(values, reference.activate(points, name), rtol=0, atol=1e-7):
            return name
    return None


class _LeafTracer(fx.Tracer):
    traced_func_name = "_of_hidden_states"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: nn.Module) -> fx.Graph:
    # A shallow twin whose traced method has one argument: masks and caches take their defaults,
    # because an FFN depends on the hidden states alone.
    own = type(module)
    twin = copy.copy(module)
    twin.__class__ = type(own.__name__, (own,), {"_of_hidden_states": lambda self, x: own.forward(self, x)})
    graph = _LeafTracer().trace(twin)
    for node in list(graph.nodes):
        if _is_identity(node, module):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph


def _is_identity(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return isinstance(child, nn.Identity) or (isinstance(child, nn.Dropout) and child.p == 0)
    return False


Match = tuple[str, str | None, str, str, str, bool]  # kind, gate, up, down, act, gate_first


def _matches(graph: fx.Graph, module: nn.Module) -> Iterator[Match]:
    # Arguments of fx nodes are a union of a dozen types; what they are here is what is being asked.
    body: list[Any] = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    whole = len([node for node in graph.nodes if node.op == "placeholder" and node.users]) == 1
    for act in body:
        if not _calls(act, module, _is_activation):
            continue
        source = act.args[0]
        product: Any = next(iter(act.users), None)
        if len(act.users) != 1 or not isinstance(source, fx.Node):
            continue
        if _calls(source, module, _is_projection) and _calls(product, module, _is_projection):
            if len(source.users) == 1:
                yield "plain", None, str(source.target), str(product.target), str(act.target), True
        elif whole and product.target in (operator.mul, torch.mul, "mul"):
            yield from _gated(act, product, body, module)


def _gated(act: Any, product: Any, body: list[fx.Node], module: nn.Module) -> Iterator[Match]:
    down: Any = next(iter(product.users), None)
    if len(product.users) != 1 or not _calls(down, module, _is_projection) or next(iter(down.users)).op != "output":
        return
    gate = act.args[0]
    up: Any = next((operand for operand in product.args if operand is not act), None)
    if _calls(gate, module, _is_projection) and _calls(up, module, _is_projection):
        same_input = gate.args == up.args and gate.args[0].op == "placeholder"
        if same_input and len(body) == 5:
            yield "gated", str(gate.target), str(up.target), str(down.target), str(act.target), True
    elif gate.target is operator.getitem and up.target is operator.getitem:
        halves, first = gate.args
        if halves.target == "chunk" and halves is up.args[0] and {first, up.args[1]} == {0, 1} and len(body) == 7:
            source = halves.args[0]
            last = halves.kwargs.get("dim", halves.args[2] if len(halves.args) > 2 else 0) == -1
            if last and halves.args[1] == 2 and _calls(source, module, _is_projection):
                yield "gate_up", None, str(source.target), str(down.target), str(act.target), first == 0


def _calls(node: Any, module: nn.Module, predicate: Callable[[nn.Module], bool]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and predicate(module.get_submodule(str(node.target)))


def _summary(graph: fx.Graph) -> str:
    names = [getattr(node.target, "__name__", str(node.target)) for node in graph.nodes if node.op.startswith("call")]
    return " ".join(names) or "no operations"
