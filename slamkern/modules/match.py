"""What was found in a model: one record for an FFN and for a norm, fused, fusible, or left alone for a reason."""

import functools
import sys
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

Part = TypeVar("Part")  # FFN or Norm: what a module computes and how


@dataclass(frozen=True)
class Match(Generic[Part]):
    """A module that is, or looks like, something that can be fused.

    path: of ``block`` in the model as it is now, wrapped or not. block: the module that computes it. module: the one
    whose class is extended, which of an FFN without a gate is its activation. part: what it computes; None where that
    is not known. reason: why it is not fused and cannot be; a module of a known shape whose weights cannot be computed
    with (meta device, quantized) has both.
    """

    path: str
    block: nn.Module
    module: nn.Module
    part: Part | None
    reason: str | None = None


def replaced_forward(module: nn.Module) -> str | None:
    """Who put another forward on this one instance, over that of its class; None where nobody did.

    What accelerate and torch put around the forward that was there (autocast, moves between devices) still runs it.
    """
    forward: Any = module.__dict__.get("forward")
    if forward is None:
        return None
    function = _function(forward)
    while function is not type(module).forward and _owner(function) in ("accelerate", "torch"):
        if not hasattr(function, "__wrapped__"):
            break
        function = _function(function.__wrapped__)
    if function is type(module).forward:
        return None
    code = getattr(function, "__code__", None)
    name = type(function).__name__ if code is None else code.co_qualname.split(".<locals>.")[-1]
    return f"its forward on this instance is {name} of {_owner(function)}"


def _function(forward: Any) -> Any:
    return getattr(forward, "__func__", forward)


def _owner(function: Any) -> str:
    """The package that a function or a callable object is of; functools.wraps writes another one's name into it."""
    function = function.func if isinstance(function, functools.partial) else function
    names = getattr(function, "__globals__", None) or vars(sys.modules[type(function).__module__])
    return str(names["__name__"]).split(".")[0]


def decoder_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The text decoder of a model, also of one in a wrapper (PEFT, DDP), and its path; else the model itself."""
    inner = getattr(model, "module", None)  # what DistributedDataParallel and its like call the model in them
    if isinstance(inner, nn.Module) and not hasattr(model, "get_decoder"):
        path, decoder = decoder_of(inner)
        return f"module.{path}".strip("."), decoder
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder is not None else model
    # ModernBERT's get_decoder returns its output head, a Linear.
    if isinstance(decoder, nn.Module) and any(decoder.children()):
        for path, module in model.named_modules():
            if module is decoder:
                return path, decoder
    return "", model


def twin_of(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """A shallow copy of ``module``, as ``kind``; made without constructors, which sharded classes do not allow."""
    twin: nn.Module = object.__new__(kind or type(module))
    twin.__dict__.update(module.__dict__)
    return twin
