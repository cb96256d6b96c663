"""Whether a model computes packed sequences exactly as it computes single ones.

Three things must hold: every layer mixes tokens only through transformers' attention interface (so that ``attention``
can confine it), what it asks for there is plain causal attention, perhaps with a sliding window, and positions come
from ``position_ids``. All of it is read from the model's structure and source, because a model that breaks one of them
does not fail: it returns slightly wrong numbers.
"""

import inspect
from functools import cache
from typing import Any

import torch


def supports_packing(model: Any) -> str | None:
    """None if packed attention is exact for ``model``, otherwise the reason why not, as half a sentence."""
    if not hasattr(model, "config") or not hasattr(model, "get_decoder"):
        return f"{type(model).__name__} is not a transformers decoder"
    decoder = model.get_decoder()
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return f"{type(decoder).__name__} takes no position_ids, so positions cannot restart at each sequence"
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.RNNBase):
            return f"{name} ({type(module).__name__}) carries state across the borders of sequences"
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if foreign := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"its layers of type {', '.join(foreign)} are not plain causal attention"

    stacks = [
        module
        for module in decoder.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    layers: list[Any] = [layer for stack in stacks for layer in stack]
    attentions: list[list[Any]] = [
        [module for module in layer.modules() if _calls_attention(type(module))] for layer in layers
    ]
    if not layers or not all(attentions):
        return f"the attention of {type(model).__name__} does not go through transformers' AttentionInterface"
    windowed = "sliding_attention" in kinds or getattr(config, "sliding_window", None) is not None
    for kind in {type(module) for group in attentions for module in group}:
        source = _source(kind.forward)
        if windowed and "sliding_window" not in source:
            return f"{kind.__name__} leaves the sliding window to a mask, which packed attention does not build"
        if "s_aux" in source:
            return f"{kind.__name__} uses attention sinks"
    for kind in {type(module) for group in ([decoder], layers, *attentions) for module in group}:
        # Once where they come in, once where they go on.
        if _source(kind.forward).count("**kwargs") < 2:
            return f"{kind.__name__} does not hand cu_seqlens on to its attention"
    return None


def _calls_attention(kind: type) -> bool:
    """Whether this class itself, not a child of it, calls the attention interface."""
    return "ALL_ATTENTION_FUNCTIONS" in _source(getattr(kind, "forward", None))


@cache
def _source(function: Any) -> str:
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""
