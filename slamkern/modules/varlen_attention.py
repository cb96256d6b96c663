"""Attention of packed sequences: the function that transformers calls in every layer.

softmax(scaling * Q_s K_s^T + causal [+ sliding window]) V_s  per sequence s and head, with Gemma-2's
cap * tanh(score / cap) where asked. Two routes, the same mathematics: FlashAttention's variable-length kernel for half
precision on CUDA, and one SDPA call a sequence everywhere else (CPU, float32, dropout, soft capping, wide values).

It does not do: key-value caches, attention sinks, position biases (ALiBi, T5), chunked attention, padding masks.
Those are refused, never ignored.
"""

import inspect
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from slamkern.errors import SlamkernError

OTHERWISE = 'for padded batches and generate() call model.set_attn_implementation("sdpa") first'


def packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (1, H, T, D), key (1, KV, T, D), value (1, KV, T, E) -> (1, T, H, E).

    KV divides H. ``cu_seq_lens_q`` and ``max_length_q`` come together; without them a sequence begins wherever
    ``position_ids`` (1, T) do not go on. ``sliding_window`` w lets a token see itself and the w - 1 tokens before it.
    """
    if attention_mask is not None or s_aux is not None or position_bias is not None:
        extra = "an attention mask" if attention_mask is not None else "a sink" if s_aux is not None else "a bias"
        raise SlamkernError(f"{type(module).__name__} asks for {extra}, which packed attention does not have")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise SlamkernError(
            f"packed attention takes one row and no cache, not queries {tuple(query.shape)} and keys"
            f" {tuple(key.shape)}; {OTHERWISE}"
        )
    if not getattr(module, "is_causal", True):
        raise SlamkernError(f"{type(module).__name__} is not causal; packed attention is")
    if cu_seq_lens_q is None or max_length_q is None:
        if position_ids is None:
            raise SlamkernError(
                f"{type(module).__name__} was handed neither cu_seq_lens_q and max_length_q nor position_ids, which "
                "tell packed attention where sequences begin"
            )
        cu_seq_lens_q, max_length_q = _borders(position_ids, query.shape[2])
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and sliding_window < max_length_q else None

    if _flash_applies(query, value, dropout, softcap):
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    from slamkern.modules.packed_sdpa import each_sequence  # brings torch.compile along

    return each_sequence(query, key, value, cu_seq_lens_q, scaling, window, dropout, softcap), None


def keep_borders(position_ids: torch.Tensor, cu_seq_lens: torch.Tensor, max_length: int) -> None:
    """Tell the borders to models that hand only ``position_ids`` on to their layers: to find them stalls a GPU."""
    if not position_ids.is_inference():
        position_ids._slamkern_borders = position_ids._version, (cu_seq_lens, max_length)  # type: ignore[attr-defined]


def _borders(position_ids: torch.Tensor, tokens: int) -> tuple[torch.Tensor, int]:
    """``cu_seq_lens`` (S + 1,) int32 and the longest length, from positions (1, T) that restart at each sequence.

    Kept on the tensor, which every layer gets: they are found, and a GPU stalls, once a forward.
    """
    if position_ids.shape != (1, tokens):
        raise SlamkernError(
            f"packed attention takes position_ids of (1, {tokens}), not {tuple(position_ids.shape)}; "
            "or give cu_seq_lens_q and max_length_q"
        )
    version = None if position_ids.is_inference() else position_ids._version
    kept = getattr(position_ids, "_slamkern_borders", None)
    if kept is not None and version is not None and kept[0] == version:
        return kept[1]
    starts = torch.ones(tokens, dtype=torch.bool, device=position_ids.device)
    starts[1:] = position_ids[0, 1:] != position_ids[0, :-1] + 1
    lengths = torch.diff(starts.nonzero().squeeze(1), append=starts.new_full((1,), tokens, dtype=torch.int64))
    borders = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    found = borders, int(lengths.max())
    position_ids._slamkern_borders = version, found  # type: ignore[attr-defined]
    return found


def _flash_applies(query: torch.Tensor, value: torch.Tensor, dropout: float, softcap: float | None) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] <= query.shape[-1] <= 256  # FlashAttention's largest head
        and query.shape[-1] % 8 == 0
        and dropout == 0.0
        and softcap is None
    )


@lru_cache(maxsize=1)
def shares_keys() -> bool:
    """Whether this torch's ``varlen_attn`` takes fewer keys than queries; torch 2.11's has no word for it."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    max_length: int,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """The variable-length kernel: (1, H, T, D), (1, KV, T, D), (1, KV, T, E) with E at most D -> (1, T, H, E)."""
    from torch.nn.attention.varlen import varlen_attn

    keywords: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    if key.shape[1] != query.shape[1]:
        if shares_keys():
            keywords["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    width = value.shape[-1]  # latent attention has narrower values; the kernel has one width
    if width < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - width))
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, D)
    output: Any = varlen_attn(rows[0], rows[1], rows[2], cu_seq_lens, cu_seq_lens, max_length, max_length, **keywords)
    return (output.narrow(-1, 0, width) if width < output.shape[-1] else output).unsqueeze(0)
