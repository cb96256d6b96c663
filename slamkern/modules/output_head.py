"""The output head of a causal language model: a linear layer up to a known multiplier and softcap, or a reason.

Heads differ between models (multipliers, caps, layers in between). What the config says is read and then compared with
the model's own logits, so that a head that does anything else is never taken for one that is linear.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules.hooks import is_untouched
from slamkern.modules.packed_attention import attends_packed
from slamkern.ops.linear_cross_entropy import HeadOptions, linear_cross_entropy


@dataclass(frozen=True, eq=False)
class Head:
    """A linear output head: weight (vocabulary, width), bias (vocabulary,) or None, then scale, then softcap."""

    weight: Tensor
    bias: Tensor | None = None
    options: HeadOptions = HeadOptions()  # noqa: RUF009  # frozen

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (rows, width) -> logits (rows, vocabulary), float32 or wider."""
        return self.options.finish(F.linear(hidden, self.weight, self.bias))

    def loss(self, hidden: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Summed cross entropy of the supervised rows, and no gradient of what is frozen; see `ops`."""
        return linear_cross_entropy(hidden, self.weight, labels, bias=self.bias, options=self.options, **options)


def linear_of(model: Any, *, whole: bool = True) -> nn.Linear:
    """The model's output head as it is now, in PEFT's ``modules_to_save`` too; SlamkernError for what is not linear.

    whole: its weight has to be one tensor now, as within the forward of a sharded model (FSDP2), or on one device.
    """
    head = model.get_output_embeddings()
    if type(head).__name__ == "ModulesToSaveWrapper":
        kept = not head.disable_adapters and head.active_adapters
        head = head.modules_to_save[kept[0]] if kept else head.original_module
    if hasattr(head, "unshard"):
        raise SlamkernError("its output head is sharded by itself; shard it together with the model (fully_shard)")
    if type(head) is not nn.Linear:
        raise SlamkernError(f"its output head is {type(head).__name__}, not a plain Linear")
    if not is_untouched(head):
        raise SlamkernError("its output head has hooks, or another forward on the instance")
    if whole and (head.weight.dim() != 2 or hasattr(head.weight, "full_tensor")):
        raise SlamkernError("the weight of its output head is in parts; patch the model before it is sharded")
    return head


def match_head(model: Any) -> Head | str:
    """The model's output head, trained or frozen, or half a sentence that says why it is not one of a known kind.

    Runs eight tokens, through a whole forward and through the decoder. Draws no random numbers.
    """
    try:
        linear = linear_of(model)
    except SlamkernError as error:
        return str(error)
    if linear.weight.is_meta:
        return "its output head has no weights yet (meta device)"
    expected, hidden = _probe(model, linear)
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    # A missed cap of 30 shifts a logit of 1 by 4e-4, a missed multiplier by far more. The bound is a few roundings,
    # since a half-precision model rounds its logits again after each operation.
    bound = 8 * torch.finfo(linear.weight.dtype).eps * float(expected.abs().max())
    for scale in _multipliers(model.config.get_text_config()):
        head = Head(linear.weight, linear.bias, HeadOptions(scale, softcap))
        with torch.no_grad():
            actual = head.logits(hidden).float()
        if actual.shape == expected.shape and float((actual - expected).abs().max()) <= bound:
            return head
    return "its logits are not those of a linear head, up to a multiplier and a softcap that its config names"


def _multipliers(config: Any) -> list[float]:
    """What logits may be multiplied by: Cohere's logit_scale, Falcon-H1's lm_head_multiplier; Granite divides by
    logits_scaling, HyperCLOVA X multiplies by it."""
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    named = (getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"))
    return list(dict.fromkeys([*(float(value) for value in named if value), 1 / scaling, scaling, 1.0]))


def _probe(model: Any, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Logits (8, vocabulary) in float32 and last hidden states (8, width) of eight tokens."""
    ids = torch.arange(8, device=linear.weight.device)[None] % linear.weight.shape[0]
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
            return model(**inputs).logits[0].float(), decoder(**inputs).last_hidden_state[0]
    finally:
        model.train(was_training)
        if attention is not None:
            decoder.set_attn_implementation(attention)
