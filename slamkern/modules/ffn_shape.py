"""Which of the shapes that ffn.py can fuse the forward of a module has, read from its ``torch.fx`` graph.

Children are leaves of the graph. A multiplier, a clamp, a dropout in the middle or any other extra operation shows up
as an extra node, and no shape matches.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from slamkern.modules.match import twin_of

_ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")


def is_activation(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__ in _ACTIVATION_MODULES or kind.__name__.endswith("Gelu")  # BloomGelu, of Bloom's own file


def is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


class _LeafTracer(fx.Tracer):
    traced_func_name = "_of_hidden_states"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(module: nn.Module) -> fx.Graph:
    # A shallow twin whose traced method has the arguments without a default alone: masks and caches take theirs.
    own = type(module)
    parameters = list(inspect.signature(own.forward).parameters.values())[1:]
    required = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    one, two = (lambda self, x: own.forward(self, x)), (lambda self, x, y: own.forward(self, x, y))
    body = {"_of_hidden_states": two if required == 2 else one}  # two: hidden states and what is added to the result
    graph = _LeafTracer().trace(twin_of(module, type(own.__name__, (own,), body)))
    for node in list(graph.nodes):
        if _is_identity(node, module):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph


def _is_identity(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return isinstance(child, nn.Identity) or (isinstance(child, nn.Dropout) and child.p == 0)
    return node.target is F.dropout and _rate(node) == 0


# What a forward may call instead of a module: the activation is read from its values too.
_FUNCTIONS = (F.silu, F.gelu, F.relu, torch.relu)


class Shape(NamedTuple):
    """Those fields of an FFN that its graph tells."""

    kind: str
    gate: str | None
    up: str
    down: str
    act: str | None
    gate_first: bool = True
    dropout: float = 0.0
    function: Callable[[torch.Tensor], torch.Tensor] | None = None  # the activation where it is no module


def shapes(graph: fx.Graph, module: nn.Module) -> Iterator[Shape]:
    # Arguments of fx nodes are a union of a dozen types; what they are here is what is being asked.
    body: list[Any] = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    whole = len([node for node in graph.nodes if node.op == "placeholder" and node.users]) == 1
    for act in body:
        called = _calls(act, module, is_activation)
        if not called and not (act.target in _FUNCTIONS and len(act.args) == 1):
            continue
        source = act.args[0]
        product: Any = next(iter(act.users), None)
        if len(act.users) != 1 or not isinstance(source, fx.Node):
            continue
        kept = product
        while called and _drops(kept, module) and len(kept.users) == 1:  # dropout of the neurons stays where it is
            kept = next(iter(kept.users))
        if called and _calls(source, module, is_projection) and _calls(kept, module, is_projection):
            if len(source.users) == 1:
                yield Shape("plain", None, str(source.target), str(kept.target), str(act.target))
        elif whole and product.target in (operator.mul, torch.mul, "mul"):
            yield from _gated(act, product, body, module)


def _gated(act: Any, product: Any, body: list[fx.Node], module: nn.Module) -> Iterator[Shape]:
    down: Any = next(iter(product.users), None)
    if len(product.users) != 1 or not _calls(down, module, is_projection):
        return
    last: Any = next(iter(down.users))
    dropout = _dropout(last, module)
    if dropout is not None:
        body, last = [node for node in body if node is not last], next(iter(last.users))
    if last.op != "output":
        return
    gate = act.args[0]
    up: Any = next((operand for operand in product.args if operand is not act), None)
    if _calls(gate, module, is_projection) and _calls(up, module, is_projection):
        same_input = gate.args == up.args and gate.args[0].op == "placeholder"
        if same_input and len(body) == 5:
            names = str(gate.target), str(up.target), str(down.target)
            shape = Shape("gated", *names, act=str(act.target), dropout=dropout or 0.0)
            if act.op == "call_function":
                shape = shape._replace(act=None, function=functools.partial(act.target, **act.kwargs))
            yield shape
    elif not dropout and act.op == "call_module" and gate.target is operator.getitem and up.target is operator.getitem:
        halves, first = gate.args
        if halves.target == "chunk" and halves is up.args[0] and {first, up.args[1]} == {0, 1} and len(body) == 7:
            source = halves.args[0]
            columns = halves.kwargs.get("dim", halves.args[2] if len(halves.args) > 2 else 0) == -1
            if columns and halves.args[1] == 2 and _calls(source, module, is_projection):
                yield Shape("gate_up", None, str(source.target), str(down.target), str(act.target), first == 0)


def _dropout(node: fx.Node, module: nn.Module) -> float | None:
    """The rate of a functional dropout that follows the module's own training mode; None for any other node."""
    if node.target is not torch.nn.functional.dropout or node.kwargs.get("training") is not module.training:
        return None
    return _rate(node)


def _rate(node: fx.Node) -> float | None:
    rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p")
    return float(rate) if isinstance(rate, int | float) else None


def _drops(node: Any, module: nn.Module) -> bool:
    dropout = _calls(node, module, lambda child: isinstance(child, nn.Dropout))
    return isinstance(node, fx.Node) and (dropout or node.target is F.dropout)


def _calls(node: Any, module: nn.Module, predicate: Callable[[nn.Module], bool]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and predicate(module.get_submodule(str(node.target)))


def summary(graph: fx.Graph) -> str:
    names = [getattr(node.target, "__name__", str(node.target)) for node in graph.nodes if node.op.startswith("call")]
    return " ".join(names) or "no operations"
