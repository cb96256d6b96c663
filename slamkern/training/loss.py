"""Next-token loss on the supervised rows only, without a logits tensor of every token.

    z_t = softcap(scale * (W h_t + b)),   softcap(z) = c * tanh(z / c) where the model has one
    loss = sum over supervised t of  logsumexp(z_t) - z_t[y_t]
    dh_t = W^T (scale * (1 - (z_t / c)^2) * (softmax(z_t) - onehot(y_t)))

`frozen_head_cross_entropy` computes the loss and dh together in the forward, `chunk` supervised rows at a time, so the
largest temporary is (chunk, vocabulary); a frozen head gets no gradient. `packed_loss` and `padded_loss` run a causal
language model up to its last hidden state and apply it.

Heads differ between models (multipliers, caps, layers in between). `read_head` reads what it knows from the config and
then compares with the model's own logits; where they differ, or where the head is trained, the loss goes through the
model's own head on the supervised rows and ordinary cross entropy. Nothing here shifts across a sequence boundary, and
nothing reduces: losses are sums over tokens, so that the caller can divide by the count of a whole step.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slamkern.data.packing import IGNORE, PackedBatch, PaddedBatch
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import attends_packed, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def frozen_head_cross_entropy(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    *,
    token_indices: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Summed cross entropy of a frozen output head, equal to ``F.cross_entropy(reduction="sum")``.

    hidden: (..., width), any floating dtype; lm_head_weight: (vocabulary, width) of the same dtype; bias: (vocabulary,)
    or None; labels: (...) int64, -100 where a row is not supervised (shifted already: row t predicts labels[t]).
    token_indices: (selected,) int64, the supervised rows of the flattened ``hidden`` where the caller knows them; to
    find them stalls a GPU. Others among them count nothing.
    Returns a float32 scalar (float64 for float64 inputs), 0 with a valid graph when no row is supervised. The head's
    GEMMs run in the dtype of the weights, everything after them in float32. Errors: a head that requires a gradient.
    """
    if lm_head_weight.requires_grad or (bias is not None and bias.requires_grad):
        raise SlamkernError("the output head requires a gradient; freeze it, or use torch's cross_entropy")
    if hidden.shape[:-1] != labels.shape or chunk < 1:
        raise SlamkernError(
            f"hidden {tuple(hidden.shape)} must be labels {tuple(labels.shape)} and a width; chunk ({chunk}) at least 1"
        )
    if token_indices is None:
        token_indices = (labels.flatten() != IGNORE).nonzero().squeeze(1)
    head = Head(lm_head_weight, bias, scale, softcap)
    return _FrozenHeadCrossEntropy.apply(hidden, labels, token_indices, head, chunk)


@dataclass(frozen=True, eq=False)
class Head:
    """A linear output head: weight (vocabulary, width), bias (vocabulary,) or None, then scale, then softcap."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (rows, width) -> logits (rows, vocabulary), float32 or wider."""
        logits = F.linear(hidden, self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, token_indices: Tensor, head: Head, chunk: int) -> Tensor:
        need_dhidden = ctx.needs_input_grad[0]
        rows = hidden.reshape(-1, hidden.shape[-1])
        targets = labels.reshape(-1)
        grad = torch.zeros_like(rows) if need_dhidden else None
        loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for index in token_indices.split(chunk):
            target = targets[index, None]
            filling = target == IGNORE  # of a bucket: such rows have no loss and no gradient
            target = target.clamp(min=0)
            logits = head.logits(rows[index])
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            loss += (normalizer - logits.gather(1, target)).masked_fill_(filling, 0.0).sum()
            if grad is None:
                continue
            dlogits = torch.exp(logits - normalizer.masked_fill_(filling, torch.inf))
            dlogits.scatter_add_(1, target, filling.to(dlogits.dtype) - 1)
            if head.softcap is not None:
                dlogits *= 1 - (logits / head.softcap).square_()
            grad[index] = (dlogits * head.scale).to(head.weight.dtype) @ head.weight
        if grad is not None:
            ctx.save_for_backward(grad.view(hidden.shape))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None, None, None


def read_head(model: "PreTrainedModel") -> Head | None:
    """The model's output head if it is frozen and linear up to a known multiplier and softcap, checked on eight tokens.

    None means: use the model's own head. That is so when the head is trained, is not a plain ``nn.Linear``, or gives
    logits that differ from the model's own by more than the rounding of its dtype. Draws no random numbers.
    """
    module = model.get_output_embeddings()
    if type(module) is not nn.Linear or any(parameter.requires_grad for parameter in module.parameters()):
        return None
    config = model.config.get_text_config()
    # Cohere multiplies by logit_scale, Granite divides by logits_scaling; whoever means something else fails the check.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None))
    ids = torch.arange(8, device=module.weight.device)[None] % module.weight.shape[0]
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    # A model around its decoder (with a vision tower beside it) builds masks, which packed attention does not take.
    decoder, attention = model.get_decoder(), None
    if attends_packed(model):
        attention = decoder.config._attn_implementation
        decoder.set_attn_implementation("eager")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(**inputs).logits[0].float()
            actual = head.logits(_last_hidden(model, **inputs)[0]).float()
    finally:
        model.train(was_training)
        if attention is not None:
            decoder.set_attn_implementation(attention)
    # A missed cap of 30 shifts a logit of 1 by 4e-4, a missed multiplier by far more. The bound is a few roundings,
    # since a half-precision model rounds its logits again after each operation.
    bound = 8 * torch.finfo(module.weight.dtype).eps * float(expected.abs().max())
    if actual.shape != expected.shape or float((actual - expected).abs().max()) > bound:
        return None
    return head


def describe_head(head: Head | None) -> str:
    """One line for the log: which loss path a model takes and why."""
    if head is None:
        return "loss: the model's own output head on the supervised rows (it is trained, or not a plain linear head)"
    cap = "" if head.softcap is None else f", softcap {head.softcap:g}"
    scale = "" if head.scale == 1.0 else f", scale {head.scale:g}"
    return f"loss: frozen linear head on the supervised rows, in chunks{scale}{cap}"


def packed_loss(
    model: "PreTrainedModel", batch: PackedBatch, *, head: Head | str | None = "check", chunk: int = 1024
) -> Tensor:
    """Summed loss over the supervised tokens of a packed batch, each sequence seeing only itself.

    head: what `read_head` returned; the default reads and checks it anew, which costs a forward of eight tokens.
    Inside ``packed_attention(model)`` the switch of attention is the caller's; it must be when activations are
    recomputed in backward, because the recomputation needs the same attention.
    """
    head = read_head(model) if isinstance(head, str) else head
    with with_packed_attention(model):
        return _supervised_loss(model, batch, head, chunk)


def padded_loss(
    model: "PreTrainedModel", batch: PaddedBatch, *, head: Head | str | None = "check", chunk: int = 1024
) -> Tensor:
    """The same sum over a padded batch."""
    return _supervised_loss(model, batch, read_head(model) if isinstance(head, str) else head, chunk)


def _supervised_loss(
    model: "PreTrainedModel", batch: PackedBatch | PaddedBatch, head: Head | None, chunk: int
) -> Tensor:
    labels = batch.shift_labels
    if head is not None:
        hidden = _last_hidden(model, **batch.model_inputs)
        return frozen_head_cross_entropy(
            hidden,
            head.weight,
            labels.to(hidden.device),
            token_indices=batch.token_indices.to(hidden.device),
            bias=head.bias,
            scale=head.scale,
            softcap=head.softcap,
            chunk=chunk,
        )
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
