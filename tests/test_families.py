"""The table of families: what is more than a rounding in it is the model's own way with roundings."""

import pytest
import torch

from benchmarks.families import build, distance, family, packed
from benchmarks.family_sizes import tiny_config
from slamkern.data.packing import Example, padded_batch
from slamkern.training.loss import padded_loss

TEXTS = [tuple(range(5, 14)), tuple(range(40, 54))]


def gradients(model):
    model.zero_grad()
    padded_loss(model, padded_batch([Example(ids, (-100, *ids[1:])) for ids in TEXTS], pad_id=0)).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def moved(model):
    """How far its gradients move when each weight is changed by half a rounding of float32, computed in float64."""
    model = model.double()
    before = gradients(model)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 6e-8 * torch.randn(parameter.shape, generator=drawn, dtype=parameter.dtype))
    return distance(gradients(model), before)


def frozen_head(name):
    model = build(name)
    model.get_output_embeddings().requires_grad_(False)
    return model


def test_gemma_4_packed_is_padded_but_for_roundings_that_its_attention_enlarges():
    """Gemma 4 does not divide its scores by the root of the head's width, so roundings weigh more in its softmax."""
    assert packed(frozen_head("gemma4_text").double()) < 1e-7  # norms compute in float32 all the same
    sensitive = moved(frozen_head("gemma4_text"))
    assert packed(frozen_head("gemma4_text")) < 3 * sensitive
    scaled = frozen_head("gemma4_text")
    for module in scaled.modules():
        if hasattr(module, "q_proj"):
            assert module.scaling == 1.0
            module.scaling = module.head_dim**-0.5
    assert moved(scaled) < sensitive / 3
    assert moved(frozen_head("llama")) < sensitive / 10


def test_sizes_of_families_that_need_their_own():
    assert tiny_config("got_ocr2").text_config.vocab_size == tiny_config("zamba").vocab_size == 96


@pytest.mark.parametrize(
    ("name", "fused", "said"),
    [
        ("cohere_compass_text", 2, ""),  # rotations in three dimensions
        ("gemma4_assistant", 2, ""),  # its forward takes hidden states and keys of the model that it drafts for
        ("musicgen", 2, ""),  # the configuration of one part
        ("git", 0, "unknown activation QuickGELUActivation"),  # its own loss leaves out the tokens of an image
        ("reformer", 0, "ReformerFeedForwardDense is half an FFN"),  # no backward in eval mode
        ("blt", 0, "model.local_encoder.layers.0.mlp and model.global_transformer.layers.0.mlp"),
    ],
)
def test_models_that_want_more_than_tokens_or_small_sizes_are_tried_too(name, fused, said):
    row = family(name)
    assert "absent" not in row and "failed" not in row, row
    assert row["fused"] == fused and said in row["left"]
    assert not fused or max(row["logits"], row["gradients"]) < 1e-5
