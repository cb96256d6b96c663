"""Whether a model can be packed: two short sequences packed, against the same two alone. A check of numbers.

    alone    a batch of both, with transformers' eager attention: what the model means
    joined   one row of both, read as one text: what would happen if the borders were ignored
    packed   one row of both, with packed attention

Packed must equal alone but for rounding: what one rounding of the embeddings grows to, and never more than a part of
what the borders make out (joined against alone), so that a model whose attention hardly matters, or one in FP8 or
bfloat16, is not accepted for that. The second sequence must not change at all with the tokens of the first. That finds
convolutions, recurrences, positions and attention of the model's own.

A sliding window is longer than these sequences, so where there is one, distances are stretched: both the mask that
transformers would build and the window that the layers ask packed attention for see token i at i * s, s about a quarter
of the window. A model that leaves its window to the mask then differs from itself with masks.

Measured as Frobenius norms of the last hidden states. The caller's random state and the model's modes are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.modules.eval_mode import eval_mode
from slamkern.modules.fp8_linear import FP8Linear
from slamkern.modules.varlen_attention import packed_attention_forward

_LENGTH = 12  # of each sequence: some windows of 4, and borders that matter
_CHECK, _MASKED = "slamkern_packing_check", "slamkern_packing_check_masked"


@dataclass
class _Watch:
    """What attention was asked for during the check; distances between tokens count ``stretch`` times."""

    stretch: int = 1
    windows: set[int] = field(default_factory=set)
    calls: int = 0

    def packed(self, *args: Any, sliding_window: int | None = None, **options: Any) -> tuple[Tensor, None]:
        """Packed attention."""
        self.calls += 1
        if sliding_window is not None:
            self.windows.add(sliding_window)
            sliding_window = math.ceil(sliding_window / self.stretch)
        return packed_attention_forward(*args, sliding_window=sliding_window, **options)

    def no_mask(self, *_: Any, local_size: int | None = None, **__: Any) -> None:
        """The mask function of packed attention."""
        if local_size is not None:
            self.windows.add(local_size)

    def mask(self, *args: Any, mask_function: Callable[..., Any], **options: Any) -> Tensor:
        """The mask that transformers would build: (rows, 1, tokens, tokens), True where a token sees another."""
        from transformers.masking_utils import sdpa_mask

        def stretched(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return mask_function(batch, head, query * self.stretch, key * self.stretch)

        options |= {"attention_mask": None, "local_size": None, "allow_is_causal_skip": False}
        mask: Tensor = sdpa_mask(*args, mask_function=stretched, **options)
        return mask

    @staticmethod
    def masked(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attention that knows the mask and no window."""
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~attention_mask, -math.inf).softmax(-1, dtype=torch.float32)
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def packing_error(model: Any) -> str | None:
    """None if packed attention is exact for ``model``, otherwise the reason why not, as half a sentence."""
    decoder = model.get_decoder()
    name = type(decoder).__name__
    if not hasattr(decoder, "set_attn_implementation"):
        return f"get_decoder() of {type(model).__name__} is a {name}, not a transformers decoder"
    device = next(decoder.parameters()).device
    before = decoder.config._attn_implementation
    random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
    # The weights as they are: autocast rounds where the check knows of no rounding.
    with random_state, torch.autocast(device.type, enabled=False), eval_mode(model):
        try:
            return _compare(decoder, device)
        except SlamkernError as error:
            return str(error)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model raises that was not written for packed sequences
            line = (str(error).splitlines() or [""])[0]
            return f"{name} fails with packed sequences ({type(error).__name__}: {line[:160]})"
        finally:
            decoder.set_attn_implementation(before)


def _compare(decoder: Any, device: torch.device) -> str | None:
    from transformers import AttentionInterface, AttentionMaskInterface

    watch = _Watch()
    AttentionInterface.register(_CHECK, watch.packed)
    AttentionMaskInterface.register(_CHECK, watch.no_mask)
    AttentionInterface.register(_MASKED, watch.masked)
    AttentionMaskInterface.register(_MASKED, watch.mask)
    decoder.set_attn_implementation(_CHECK)
    if decoder.config._attn_implementation != _CHECK:
        return f"the attention of {type(decoder).__name__} does not go through transformers' AttentionInterface"

    vocabulary = decoder.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(7, 7 + 3 * _LENGTH, device=device) % vocabulary).view(3, _LENGTH)
    both, other = ids[:2], ids[[2, 1]]
    positions = torch.arange(_LENGTH, device=device).repeat(2)[None]
    borders = torch.tensor([0, _LENGTH, 2 * _LENGTH], dtype=torch.int32, device=device)
    packing: dict[str, Any] = {"position_ids": positions, "cu_seq_lens_q": borders, "cu_seq_lens_k": borders}
    packing |= {"max_length_q": _LENGTH, "max_length_k": _LENGTH}

    def run(implementation: str, tokens: Tensor, **options: Any) -> Tensor:
        decoder.set_attn_implementation(implementation)
        hidden: Tensor = decoder(input_ids=tokens, use_cache=False, **options)[0]
        return hidden.float().reshape(2, _LENGTH, -1)

    def packed(tokens: Tensor) -> Tensor:
        return run(_CHECK, tokens.reshape(1, -1), **packing)

    packs = packed(both)
    if not watch.calls:
        return f"the attention of {type(decoder).__name__} does not go through transformers' AttentionInterface"
    alone, joined = run("eager", both), run("eager", both.reshape(1, -1))
    rounded = decoder.get_input_embeddings().register_forward_hook(_one_rounding)
    try:
        noise = float((run("eager", both) - alone).norm())
    finally:
        rounded.remove()
    rounding = 1e-5 * float(alone.norm())

    if any(isinstance(module, FP8Linear) for module in decoder.modules()):
        noise = math.inf  # whether one rounding moves a value to the next in FP8 is chance

    def wrong(error: Tensor, matter: float) -> bool:
        return float(error.norm()) > rounding + max(1e-3 * matter, min(8 * noise, 0.25 * matter))

    matter = float((joined - alone)[1].norm())
    changed = float((packed(other) - packs)[1].norm())
    if changed > 1e-3 * matter + rounding:
        return f"a packed sequence of {type(decoder).__name__} sees the one before it, past its attention"
    if watch.windows:
        watch.stretch = max(1, min(watch.windows) // 4)
        windowed = run(_MASKED, both)
        shown = max(matter, float((windowed - alone).norm()))
        if wrong(packed(both) - windowed, shown):
            size = min(watch.windows)
            return f"{type(decoder).__name__} leaves its window or chunk of {size} tokens to a mask"
    if wrong(packs - alone, matter):
        return f"packed sequences of {type(decoder).__name__} differ from the same ones alone"
    if decoder.get_output_embeddings() is not None:
        return f"{type(decoder).__name__}, the decoder, returns logits instead of hidden states"
    return None


def _one_rounding(module: Any, args: Any, output: Tensor) -> Tensor:
    """Every other element larger by one rounding."""
    signs = (torch.arange(output.shape[-1], device=output.device) % 2).to(output.dtype)
    return output * (1 + torch.finfo(output.dtype).eps * signs)
