"""Causal attention confined to each sequence of a packed batch, as an attention implementation of transformers.

``packed_attention(model)`` switches a model to it and back. Inside, the model is called with one row of T tokens,
restarting ``position_ids``, ``use_cache=False`` and the keywords of transformers' flash attention, which it hands
through to every layer: ``cu_seq_lens_q`` (S+1,) int32 and ``max_length_q`` int. Where those are missing the borders are
read off ``position_ids``. The mathematics is ``varlen_attention``'s.

A model that mixes tokens in another way as well, or leaves its sliding window to a mask, would not fail but return
slightly wrong numbers: ``packing_check`` compares its packed sequences with the same ones alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from slamkern.errors import SlamkernError
from slamkern.modules.packing_check import packing_error
from slamkern.modules.varlen_attention import OTHERWISE, keep_borders, packed_attention_forward

# By name, for any trainer: a padding mask is looked at, at the cost of a stall of the GPU a forward.
NAME = "slamkern_packed"
# Inside ``packed_attention(model)``, which refuses masks before the forward: transformers builds none for a name
# without a mask function, nor does it look at the position ids on the GPU to find out whether it should.
_MASKLESS = "slamkern_packed_maskless"


_WARNING = "warn_if_padding_and_no_attention_mask"  # of transformers' models


def _no_warning(*_: Any, **__: Any) -> None: ...


def _no_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> None:
    """Masks are not built: the borders say it all. One of all ones (OPT makes it itself) hides nothing."""
    if attention_mask is not None and not attention_mask.all():
        raise SlamkernError(f"packed attention takes no padding mask; {OTHERWISE}")


def _before_forward(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if module.config._attn_implementation != _MASKLESS:
        return
    if kwargs.get("attention_mask") is not None:
        raise SlamkernError("packed attention takes no padding mask: a packed batch has no padding to hide")
    position_ids, borders, longest = (kwargs.get(name) for name in ("position_ids", "cu_seq_lens_q", "max_length_q"))
    if position_ids is not None and borders is not None and longest is not None:
        keep_borders(position_ids, borders, longest)


def register() -> None:
    """Make ``slamkern_packed`` known to transformers, ``attn_implementation=`` by name; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention_forward)
    AttentionMaskInterface.register(NAME, _no_mask)
    AttentionInterface.register(_MASKLESS, packed_attention_forward)


def attends_packed(model: Any) -> bool:
    """Whether packed attention is what ``model`` runs now: inside ``packed_attention(model)``, or loaded by name."""
    return model.get_decoder().config._attn_implementation in (NAME, _MASKLESS)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Run ``model`` with packed attention inside the block; the implementation it had is restored at the end.

    ``SlamkernError`` with the reason if the model cannot (``supports_packing``).
    """
    reason = supports_packing(model)
    if reason is not None:
        raise SlamkernError(f"this model cannot be packed: {reason}; use padded batches (packing=False)")
    register()
    decoder = model.get_decoder()  # a vision tower beside it keeps its own attention
    before = decoder.config._attn_implementation
    # It looks for padding in the ids, which stalls a GPU at every forward, to say that a mask is missing.
    own = vars(decoder).get(_WARNING)
    setattr(decoder, _WARNING, _no_warning)
    guard = decoder.register_forward_pre_hook(_before_forward, with_kwargs=True)
    try:
        decoder.set_attn_implementation(_MASKLESS)
        yield
    finally:
        guard.remove()
        if own is None:
            delattr(decoder, _WARNING)
        else:
            setattr(decoder, _WARNING, own)
        decoder.set_attn_implementation(before)


def supports_packing(model: Any) -> str | None:
    """None if packed attention is exact for ``model``, otherwise the reason why not, as half a sentence.

    Found by running two short sequences packed and alone, once for a model of the same modules and configuration
    (``packing_check``).
    """
    if not hasattr(model, "config") or not hasattr(model, "get_decoder"):
        return f"{type(model).__name__} is not a transformers decoder"
    modules = tuple((name, type(module).__qualname__) for name, module in model.named_modules())
    key = hash((modules, model.config.to_json_string(use_diff=False)))
    known: tuple[int, str | None] | None = model.__dict__.get("_slamkern_packing")
    if known is None or known[0] != key:
        known = key, packing_error(model)
        model.__dict__["_slamkern_packing"] = known
    return known[1]
