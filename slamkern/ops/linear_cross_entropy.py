"""The fused linear cross-entropy: an output head and its loss, without a logits tensor of every token.

    z_t = softcap(scale * (W h_t + b)),   softcap(z) = c * tanh(z / c) where the model has one
    loss = sum over supervised t of  logsumexp(z_t) - z_t[y_t]
    dz_t = scale * (1 - (z_t / c)^2) * (softmax(z_t) - onehot(y_t)),   dh_t = W^T dz_t,   dW = sum_t dz_t h_t^T

The loss and its gradients are computed together in the forward, ``chunk`` supervised rows at a time, so the largest
temporary is (chunk, vocabulary). Nothing is computed for what is frozen: without a gradient of W there is no dW.
Not here: the shift of the labels, and any division; a loss is a sum over tokens, so that the caller can divide by the
count of a whole step. ``torch.nn.functional.linear_cross_entropy`` knows neither scale nor softcap, nor torch 2.11.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.ops.once import once_differentiable

IGNORE_INDEX = -100  # of torch's cross_entropy and of transformers


@dataclass(frozen=True)
class HeadOptions:
    """What follows the linear part of a head (scale, then softcap), and how many rows are computed at a time."""

    scale: float = 1.0
    softcap: float | None = None
    chunk: int = 1024

    def finish(self, logits: Tensor) -> Tensor:
        """Logits of the linear part, any floating dtype, to those of the model, float32 or wider."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    options: HeadOptions = HeadOptions(),
    token_indices: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Summed cross entropy of a linear output head, equal to ``F.cross_entropy(logits, labels, reduction="sum")``.

    hidden: (..., width), any floating dtype; weight: (vocabulary, width) of the same dtype, or of any under autocast;
    bias: (vocabulary,) or None; labels: (...) int64, ``ignore_index`` where a row is not supervised (shifted already:
    row t predicts labels[t]). token_indices: (selected,) int64, the supervised rows of the flattened ``hidden`` where
    the caller knows them; to find them stalls a GPU. Others among them count nothing.
    Returns a float32 scalar (float64 for float64 inputs), 0 with a valid graph when no row is supervised. The GEMMs
    run in the dtype of the weight or of autocast, everything after them in float32, in which dW and db are summed over
    the chunks, too. SlamkernError for shapes that do not fit.
    """
    if hidden.shape[:-1] != labels.shape or weight.shape[1:] != hidden.shape[-1:] or options.chunk < 1:
        raise SlamkernError(
            f"hidden {tuple(hidden.shape)} must be labels {tuple(labels.shape)} and the width of the weight"
            f" {tuple(weight.shape)}; chunk ({options.chunk}) at least 1"
        )
    if token_indices is None:
        if torch.compiler.is_compiling():  # all rows: how many are supervised is not known to a compiled program
            token_indices = torch.arange(labels.numel(), device=labels.device)
        else:
            token_indices = (labels.flatten() != ignore_index).nonzero().squeeze(1)
    if not torch.is_grad_enabled():  # in the forward of a Function nobody can tell any more
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    loss: Tensor = LinearCrossEntropy.apply(hidden, weight, bias, labels, token_indices, options, ignore_index)
    return loss


class LinearCrossEntropy(torch.autograd.Function):
    """Loss of hidden (..., width), weight (vocabulary, width), bias (vocabulary,) or None, labels (...)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        token_indices: Tensor,
        options: HeadOptions,
        ignore_index: int,
    ) -> Tensor:
        need_dhidden, need_dweight, need_dbias = ctx.needs_input_grad[:3]
        rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
        device = hidden.device.type
        wide = torch.promote_types(hidden.dtype, torch.float32)
        # Once, for autocast would cast the whole weight for each chunk.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix = weight.to(dtype)
        dhidden = torch.zeros_like(rows) if need_dhidden else None
        dweight = torch.zeros_like(weight, dtype=wide) if need_dweight else None
        dbias = torch.zeros_like(weight[:, 0], dtype=wide) if need_dbias else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        for index in token_indices.split(options.chunk):
            chunk, target = rows[index], targets[index, None]
            filling = target == ignore_index  # of a bucket: such rows have no loss and no gradient
            target = target.masked_fill(filling, 0)
            logits = options.finish(F.linear(chunk, matrix, bias))
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            loss += (normalizer - logits.gather(1, target)).masked_fill_(filling, 0.0).sum()
            if dhidden is None and dweight is None and dbias is None:
                continue
            dlogits = torch.exp(logits - normalizer.masked_fill_(filling, torch.inf))
            dlogits.scatter_add_(1, target, filling.to(dlogits.dtype) - 1)
            if options.softcap is not None:
                dlogits *= 1 - (logits / options.softcap).square_()
            narrow = (dlogits * options.scale).to(dtype)
            if dhidden is not None:
                dhidden[index] = (narrow @ matrix).to(dhidden.dtype)
            if dweight is not None:
                dweight += narrow.T @ chunk.to(dtype)
            if dbias is not None:
                dbias += narrow.sum(0, dtype=wide)
        ctx.save_for_backward(
            None if dhidden is None else dhidden.view(hidden.shape),
            None if dweight is None else dweight.to(weight.dtype),
            None if dbias is None or bias is None else dbias.to(bias.dtype),
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if saved is None else saved * grad_loss.to(saved.dtype) for saved in ctx.saved_tensors)
        return *gradients, None, None, None, None
