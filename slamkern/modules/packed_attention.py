"""Causal attention confined to each sequence of a packed batch, as an attention implementation of transformers.

``packed_attention(model)`` switches a model to it and back. Inside, the model is called with one row of T tokens,
restarting ``position_ids``, ``use_cache=False`` and two extra keywords that transformers hands through to every layer:
``cu_seqlens`` (S+1,) int32 and ``max_seqlen`` int. Formula, per sequence s and head:
softmax(scaling * Q_s K_s^T + causal [+ sliding window]) V_s, with Gemma-2's cap * tanh(score / cap) where asked.

Two routes, the same mathematics: FlashAttention's variable-length kernel for half precision on CUDA, and one SDPA call
a sequence everywhere else (CPU, float32, dropout, soft capping, unequal head sizes).

Whether a model can be packed (``supports_packing``) is read from its structure and source: every layer must mix tokens
only through transformers' attention interface, ask there for plain causal attention, perhaps with a sliding window,
and take positions from ``position_ids``. A model that breaks one of them does not fail: it returns slightly wrong
numbers.

It does not do: key-value caches, attention sinks, position biases (ALiBi, T5), chunked attention, padding masks.
Those are refused, never ignored.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch

from slamkern.errors import SlamkernError

NAME = "slamkern_packed"


def packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (1, H, T, D), key (1, KV, T, D), value (1, KV, T, E) -> (1, T, H, E).

    KV divides H. ``sliding_window`` w lets a token see itself and the w - 1 tokens before it.
    """
    if cu_seqlens is None or max_seqlen is None:
        raise SlamkernError(
            f"{type(module).__name__} inside packed_attention got no cu_seqlens and max_seqlen: "
            "call the model with **batch.model_inputs"
        )
    if attention_mask is not None or s_aux is not None or position_bias is not None:
        extra = "an attention mask" if attention_mask is not None else "a sink" if s_aux is not None else "a bias"
        raise SlamkernError(f"{type(module).__name__} asks for {extra}, which packed attention does not have")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise SlamkernError(
            f"packed attention takes one row and no cache, not queries {tuple(query.shape)} and keys {tuple(key.shape)}"
        )
    if not getattr(module, "is_causal", True):
        raise SlamkernError(f"{type(module).__name__} is not causal; packed attention is")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and sliding_window < max_seqlen else None

    if _flash_applies(query, value, dropout, softcap):
        return _flash(query, key, value, cu_seqlens, max_seqlen, scaling, window), None
    from slamkern.modules.packed_sdpa import each_sequence  # brings torch.compile along

    return each_sequence(query, key, value, cu_seqlens, scaling, window, dropout, softcap), None


def _flash_applies(query: torch.Tensor, value: torch.Tensor, dropout: float, softcap: float | None) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= 256  # FlashAttention's largest head
        and query.shape[-1] % 8 == 0
        and dropout == 0.0
        and softcap is None
    )


@lru_cache(maxsize=1)
def _varlen_options() -> frozenset[str]:
    """The keywords of this torch's ``varlen_attn``: ``enable_gqa`` is new in 2.12, ``is_causal`` became a window."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """The variable-length kernel: (1, H, T, D) and twice (1, KV, T, D) -> (1, T, H, D)."""
    from torch.nn.attention.varlen import varlen_attn

    options = _varlen_options()
    keywords: dict[str, Any] = {"scale": scaling}
    if "window_size" in options:
        keywords["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        keywords["is_causal"] = True
    else:
        raise SlamkernError(f"torch {torch.__version__} cannot slide a window in varlen_attn; use a newer torch")
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in options:
            keywords["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, D)
    output: Any = varlen_attn(rows[0], rows[1], rows[2], cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **keywords)
    return output.unsqueeze(0)


def _no_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> None:
    """Masks are not built: the borders are in ``cu_seqlens``. One of all ones (OPT makes it itself) hides nothing."""
    if attention_mask is not None and not attention_mask.all():
        raise SlamkernError("packed attention takes no padding mask: a packed batch has no padding to hide")


def register() -> None:
    """Make ``slamkern_packed`` known to transformers; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention_forward)
    AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Run ``model`` with packed attention inside the block; the implementation it had is restored at the end.

    ``SlamkernError`` with the reason if the model cannot (``supports_packing``).
    """
    reason = supports_packing(model)
    if reason is not None:
        raise SlamkernError(f"this model cannot be packed: {reason}; use padded batches (packing=False)")
    register()
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


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
