"""Layers by the norm of their gradient on the training data (GRASS, arXiv 2604.07808): what the loss pulls at most."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from slamkern.data.packing import Example, pack_plan
from slamkern.errors import SlamkernError
from slamkern.modules.ffn_match import by_layer, find_ffns
from slamkern.modules.packed_attention import supports_packing
from slamkern.training.batches import sum_loss
from slamkern.training.loss import read_head, with_packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_gradient_norms(
    model: "PreTrainedModel", examples: Sequence[Example], tokens_per_batch: int, *, batches: int
) -> list[float]:
    """2-norm of the gradient of all matrices of each decoder layer, averaged over the first ``batches``.

    The model must be one that can be packed. Its gradients are empty and everything in it is frozen afterwards.
    """
    if reason := supports_packing(model):
        raise SlamkernError(f"gradient norms are measured on packed batches: {reason}")
    ffns = by_layer(find_ffns(model))
    parts = {layer: model.get_submodule(match.path.rpartition(".")[0]) for layer, match in ffns.items()}
    weights = {layer: [p for p in part.parameters() if p.dim() == 2] for layer, part in sorted(parts.items())}
    model.requires_grad_(False)
    head = read_head(model)
    for parameter in (p for row in weights.values() for p in row):
        parameter.requires_grad_(True)
    sums = dict.fromkeys(weights, 0.0)
    lengths = [len(example.input_ids) for example in examples]
    plan = list(islice(pack_plan(lengths, tokens_per_batch, seed=0, epoch=0), batches))
    with with_packed_attention(model):
        for batch in plan:
            sum_loss(model, head, [examples[index] for index in batch], packing=True).backward()
            for layer, row in weights.items():
                squares = [p.grad.float().square().sum() for p in row if p.grad is not None]
                sums[layer] += float(sum(squares)) ** 0.5 / len(plan)
            model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return list(sums.values())
