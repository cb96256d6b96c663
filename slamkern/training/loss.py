"""Next-token loss on the supervised rows only, without a logits tensor of every token.

`packed_loss` and `padded_loss` run a causal language model up to its last hidden state and apply the fused linear
cross-entropy (``ops.linear_cross_entropy``) of its head. Where `read_head` finds a head that is not linear, the loss
goes through the model's own on the supervised rows and ordinary cross entropy. Nothing here shifts across a sequence
boundary, and nothing reduces: losses are sums over tokens, so that the caller can divide by the count of a whole step.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slamkern.data.packing import IGNORE, PackedBatch, PaddedBatch
from slamkern.errors import SlamkernError
from slamkern.modules.output_head import Head, match_head
from slamkern.modules.packed_attention import attends_packed, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_head(model: "PreTrainedModel") -> Head | None:
    """The model's output head if it is linear up to a known multiplier and softcap, checked on eight tokens.

    None means: use the model's own head. That is so when it is no plain ``nn.Linear``, or gives logits that differ from
    the model's own by more than the rounding of its dtype. Draws no random numbers.
    """
    found = match_head(model)
    return found if isinstance(found, Head) else None


def describe_head(head: Head | None) -> str:
    """One line for the log: which loss path a model takes and why."""
    if head is None:
        return "loss: the model's own output head on the supervised rows (it is not a plain linear head)"
    cap = "" if head.options.softcap is None else f", softcap {head.options.softcap:g}"
    scale = "" if head.options.scale == 1.0 else f", scale {head.options.scale:g}"
    kind = "trained" if head.weight.requires_grad else "frozen"
    return f"loss: {kind} linear head on the supervised rows, in chunks{scale}{cap}"


def packed_loss(model: "PreTrainedModel", batch: PackedBatch, *, head: Head | str | None = "check") -> Tensor:
    """Summed loss over the supervised tokens of a packed batch, each sequence seeing only itself.

    head: what `read_head` returned; the default reads and checks it anew, which costs a forward of eight tokens.
    Inside ``packed_attention(model)`` the switch of attention is the caller's; it must be when activations are
    recomputed in backward, because the recomputation needs the same attention.
    """
    head = read_head(model) if isinstance(head, str) else head
    with with_packed_attention(model):
        return _supervised_loss(model, batch, head)


def padded_loss(model: "PreTrainedModel", batch: PaddedBatch, *, head: Head | str | None = "check") -> Tensor:
    """The same sum over a padded batch."""
    return _supervised_loss(model, batch, read_head(model) if isinstance(head, str) else head)


def _supervised_loss(model: "PreTrainedModel", batch: PackedBatch | PaddedBatch, head: Head | None) -> Tensor:
    labels = batch.shift_labels
    if head is not None:
        hidden = _last_hidden(model, **batch.model_inputs)
        indices = batch.token_indices.to(hidden.device)
        return head.loss(hidden, labels.to(hidden.device), token_indices=indices)
    # Positions that some sequence supervises: for one packed row exactly the supervised rows.
    logits = model(**batch.model_inputs, logits_to_keep=batch.logits_to_keep).logits
    if logits.shape[1] != batch.logits_to_keep.numel():  # a model that does not know logits_to_keep returns every row
        logits = logits[:, batch.logits_to_keep]
    kept = labels[:, batch.logits_to_keep].to(logits.device)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), kept.flatten(), ignore_index=IGNORE, reduction="sum")


def _last_hidden(model: "PreTrainedModel", **inputs: Any) -> Tensor:
    backbone = model.get_decoder()
    return backbone(**inputs).last_hidden_state


def with_packed_attention(model: "PreTrainedModel") -> AbstractContextManager[Any]:
    """``packed_attention(model)``, nothing where the caller has entered it."""
    if attends_packed(model):
        return nullcontext()
    if torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False):
        raise SlamkernError(
            "gradient checkpointing recomputes attention in backward; enter packed_attention(model) around both"
        )
    return packed_attention(model)
