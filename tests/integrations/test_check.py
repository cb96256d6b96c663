"""The first-batch check finds leaks, labels across borders and losses that are divided by something else."""

import pytest
import torch
import torch.nn.functional as F
from support.tiny_models import tiny_model
from transformers import DataCollatorWithFlattening

from slamkern.errors import SlamkernError
from slamkern.integrations.check import check_normalization, check_packing
from slamkern.integrations.packed_attention import register

ROWS = [{"input_ids": list(range(3, 3 + n)), "labels": [-100, *range(4, 3 + n)]} for n in (9, 14, 5)]


@pytest.fixture
def model():
    model = tiny_model(attention_dropout=0.3).train()
    model.set_attn_implementation(register())
    return model


@pytest.mark.parametrize("borders", [True, False])
def test_packing(model, borders):
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=borders)(ROWS)
    check_packing(model, batch)
    check_packing(model, {"input_ids": batch["input_ids"]})  # nothing is packed there
    assert model.training
    model.set_attn_implementation("eager")
    check_packing(model, batch)  # transformers reads the position ids too, and builds a mask
    with pytest.raises(SlamkernError, match="differ from the same ones alone"):
        check_packing(model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
    with pytest.raises(SlamkernError, match="the first token of a packed sequence has a label"):
        check_packing(model, batch | {"labels": batch["input_ids"]})


def test_half_precision_by_autocast_is_rounding_and_no_leak(model):
    batch = DataCollatorWithFlattening()(ROWS)
    rounded = model.lm_head.register_forward_hook(
        lambda module, args, output: output * (1 + float(torch.randn(())) / 128)
    )
    with torch.autocast("cpu", torch.bfloat16):
        check_packing(model, batch)
    with pytest.raises(SlamkernError, match="differ from the same ones alone"):
        check_packing(model, batch)
    rounded.remove()


def test_a_model_that_cannot_be_packed_is_refused_by_name_too(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output + output.roll(1, dims=1))
    with pytest.raises(SlamkernError, match="cannot be packed: a packed sequence of LlamaModel sees the one before"):
        check_packing(model, DataCollatorWithFlattening()(ROWS))


def test_normalization(model):
    batch = DataCollatorWithFlattening()(ROWS)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0, :-1]
    total = float(F.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum"))
    counted = 9 + 14 + 5 - 3
    check_normalization(model, batch, total / counted)
    check_normalization(model, batch, total / 100, items=100, whole_step=False)
    for loss, items, message in [
        (total / batch["input_ids"].numel(), None, "normalized by something else"),  # over every token
        (total / 100, 100, "divided by 100 tokens, but 25"),
        (total / 10, 10, "divided by 10 tokens, but 25"),
        (float("nan"), None, "loss of the first batch is nan"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            check_normalization(model, batch, loss, items=items)
