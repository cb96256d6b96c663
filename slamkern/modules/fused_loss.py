"""The loss of a causal language model fused with its output head: no logits while it trains.

Mixed into the class of one model. Called in training mode with ``labels``, it runs the model's own decoder and the
fused linear cross-entropy, by the contract of transformers' ``ForCausalLMLoss``: labels are shifted unless
``shift_labels`` are given, tokens of ``ignore_index`` do not count, and the sum is divided by ``num_items_in_batch`` or
by the number of tokens that count. The output is of the model's own class, with ``logits=None``. In evaluation mode, or
without labels, the model's own forward runs and gives logits. ``skip_logits=True`` or ``False`` decides for one call
(the keyword is Liger's). A frozen head costs no product for its weight's gradient.

Whether all this is the model's own loss is tried out on eight tokens; afterwards each call checks what may have changed
since (an adapter on the head, hooks, another ``loss_function``) and refuses it by name.
"""

import functools
import inspect
import sys
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules.eval_mode import eval_mode
from slamkern.modules.match import replaced_forward
from slamkern.modules.output_head import Head, linear_of, match_head
from slamkern.modules.surgery import Extended, extend, is_transformed, restore
from slamkern.ops.linear_cross_entropy import IGNORE_INDEX, HeadOptions


@dataclass(frozen=True)
class Loss:
    """How a model computes its loss: what follows its linear head, its output's class and fields, its loss_function."""

    head: HeadOptions
    output: Any
    fields: tuple[str, ...]
    function: Any


class FusedLoss(Extended):
    """Marks a causal language model that computes its loss without logits."""

    # transformers writes the name of a model's class into config.json and looks things up by it.
    slamkern_prefix = ""
    slamkern_loss: Loss
    get_output_embeddings: Any
    base_model: Any
    loss_function: Any
    config: Any

    @classmethod
    def slamkern_members(cls, own: type[nn.Module]) -> dict[str, Any]:
        """A forward with the signature of the model's own, which trainers read the names of its arguments from."""
        own_forward: Any = own.forward
        signature = inspect.signature(own_forward)

        @functools.wraps(own_forward)
        def forward(self: Any, *args: Any, skip_logits: bool | None = None, **kwargs: Any) -> Any:
            if args:
                kwargs = _by_name(signature, self, *args, **kwargs)
            # accelerate keeps this function on the instance, also after the model was unpatched.
            loss: Loss | None = self.__dict__.get("slamkern_loss")
            if loss is None or not _skips_logits(self, kwargs.get("labels"), skip_logits):
                return own_forward(self, **kwargs)
            return _output(self, loss, **kwargs)

        return {"forward": forward}


def _by_name(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.name in bound.arguments:
            value = bound.arguments[parameter.name]
            named |= value if parameter.kind is parameter.VAR_KEYWORD else {parameter.name: value}
    return named


def _skips_logits(model: Any, labels: Tensor | None, asked: bool | None) -> bool:
    if asked and labels is None:
        raise SlamkernError("skip_logits=True leaves nothing to return without labels")
    if asked is None:
        return labels is not None and model.training and not is_transformed()
    return asked


def _output(
    model: Any,
    loss: Loss,
    *,
    labels: Tensor,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    logits_to_keep: int | Tensor = 0,
    return_dict: bool | None = None,
    **inputs: Any,
) -> Any:
    if model.loss_function is not loss.function:
        raise SlamkernError(f"{type(model).__name__} has another loss_function than when it was patched; patch it anew")
    if inputs.get("output_router_logits"):
        raise SlamkernError("a loss with a router's term is not fused: leave output_router_logits away")
    try:
        linear = linear_of(model)
    except SlamkernError as error:
        raise SlamkernError(f"the loss of {type(model).__name__} cannot be fused: {error}") from None
    found = model.base_model(**inputs)
    hidden = found.last_hidden_state
    hidden = hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    shift_labels = shift_labels.reshape(hidden.shape[:-1]).to(hidden.device)
    total = Head(linear.weight, linear.bias, loss.head).loss(hidden, shift_labels, ignore_index=ignore_index)
    count = (shift_labels != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    count = count.to(total.device) if isinstance(count, Tensor) else count  # a plain int of a loop of one's own
    kept = {name: getattr(found, name, None) for name in loss.fields}
    output: Any = loss.output(**kept | {"loss": total / count, "logits": None})
    as_dict = model.config.return_dict if return_dict is None else return_dict
    return output if as_dict else output.to_tuple()


def fuse_loss(model: nn.Module, loss: Loss) -> None:
    """Extend the class of this one model with the fused loss."""
    extend(model, FusedLoss, slamkern_loss=loss)


def unfuse_loss(model: FusedLoss) -> None:
    """Give the model its own class back, as it was before :func:`fuse_loss`."""
    restore(model, "slamkern_loss")


def language_model(model: nn.Module) -> Any:
    """The transformers model with an output head, in its wrappers (PEFT, DDP); None where there is none."""
    # Nothing imports transformers for a module that is not one of its models.
    kind: Any = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    found: Any = None if kind is None else next((m for m in model.modules() if isinstance(m, kind)), None)
    return None if found is None or found.get_output_embeddings() is None else found


def match_loss(model: Any) -> Loss | str:
    """How ``model`` (see :func:`language_model`) computes its loss, or half a sentence why it cannot be fused.

    Runs eight tokens, with their loss.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    if isinstance(model, FusedLoss) and replaced_forward(model) is None:
        return model.slamkern_loss
    if (reason := replaced_forward(model)) is not None:
        return reason
    if model.loss_function is not ForCausalLMLoss:
        return f"its loss_function is {getattr(model.loss_function, '__name__', model.loss_function)}"
    if model.base_model is model:
        return "it has no decoder apart from its head"
    head = match_head(model)
    if isinstance(head, str):
        return head
    ids = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids, "use_cache": False}
    with eval_mode(model):
        own = model(**inputs)
        loss = Loss(head.options, type(own), tuple(field.name for field in fields(own)), model.loss_function)
        try:
            ours = _output(model, loss, **inputs)
        except Exception as error:  # a decoder of another kind
            return f"its decoder gives no last hidden state to its head ({type(error).__name__})"
    missing = [name for name, value in own.items() if name != "logits" and value is not None and ours[name] is None]
    # Exactly the cross entropy of its logits; and ours, by as much as logits of eight rows differ from those of seven.
    alone = float(F.cross_entropy(own.logits[0, :-1].float(), ids[0, 1:]))
    bound = 16 * torch.finfo(head.weight.dtype).eps * float(own.logits.abs().max())
    plain = abs(alone - float(own.loss)) <= 1e-5 * abs(alone) and abs(float(ours.loss) - alone) <= bound
    if missing or not plain:
        return "its forward does more than a decoder, a linear head and their cross entropy" + (
            f": it returns {missing[0]}" if missing else ""
        )
    return loss


def computes_loss(model: nn.Module) -> bool:
    """Whether the fused loss is what ``model``, wrapped or not, computes in training."""
    found = language_model(model)
    return isinstance(found, FusedLoss) and replaced_forward(found) is None


def describe_loss(model: nn.Module) -> str | None:
    """A line for :func:`explain`; None for a model without an output head. Runs nothing."""
    found = language_model(model)
    if found is None:
        return None
    name = type(found).__name__
    reason = replaced_forward(found)
    if reason is not None:
        return f"{name}: loss not fused: {reason}"
    if not isinstance(found, FusedLoss):
        return f"{name}: loss not fused: patch_model(model, loss=True) computes it without logits"
    try:
        head = linear_of(found, whole=False)
    except SlamkernError as error:
        return f"{name}: loss not fused: {error}"
    kind = "a trained head" if head.weight.requires_grad else "a frozen head, without its weight's gradient"
    return f"{name}: loss fused (linear cross-entropy of {kind}; no logits in training)"
