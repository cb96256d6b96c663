"""What was found in a model: one record for an FFN and for a norm, fused, fusible, or left alone for a reason."""

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
    """Who put another forward on this one instance, over that of its class; None where nobody did."""
    forward: Any = module.__dict__.get("forward")
    if forward is None:
        return None
    function = getattr(forward, "__func__", forward)
    owner = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"its forward on this instance is {name} of {owner.split('.')[0]}"


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
