"""Architectures that need more than the common shapes: the right module is fused, and computes what it did."""

import copy
import re

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import slamkern

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_PER_LAYER = {
    "layer_types": ["full_attention"] * 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
}
_GEMMA3N = _PER_LAYER | {"laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [48, 48]}
# Configuration, what it needs beside SIZES, and the rows of explain.
FAMILIES = {
    "Nemotron": ({}, "plain", "relu2"),
    "Arcee": ({}, "plain", "relu2"),
    "Jais2": ({}, "plain", "relu2"),
    "NanoChat": ({}, "plain", "relu2"),
    "Persimmon": ({}, "plain", "relu2"),
    # Decoder layers with a gate and an activation of their own around the FFN.
    "Gemma3nText": (_GEMMA3N, "gated", "gelu_tanh"),
    "Gemma4Text": (_PER_LAYER | {"global_head_dim": 8}, "gated", "gelu_tanh"),
    # An activation of the model's own file, and a forward that is given the residual too.
    "Bloom": ({"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0}, "plain", "gelu_tanh"),
    # The same two arguments.
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "plain", "gelu"),
    # A function for an activation; and a dropout between activation and second projection.
    "Lfm2": ({"layer_types": ["full_attention"] * 2}, "gated", "silu"),
    "BioGpt": ({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, "plain", "gelu"),
    # Weights of attention in three dimensions, which are no experts.
    "XLNet": ({"d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 2, "dropout": 0.0}, "plain", "gelu"),
    # Its get_decoder is the output head.
    "ModernBertDecoder": ({}, "gate_up", "gelu"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ffn_is_found_and_computes_the_same(name, input_ids):
    overrides, kind, activation = FAMILIES[name]
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**SIZES | overrides)).eval()
    model = slamkern.patch_model(copy.deepcopy(stock))
    rows = slamkern.explain(model)
    assert [(row.layer, row.kind, row.activation, row.fused) for row in rows] == [
        (layer, kind, activation, True) for layer in range(2)
    ]
    outputs = [each(input_ids=input_ids, labels=input_ids, use_cache=False) for each in (stock, model)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.loss.backward()
    for (path, theirs), ours in zip(stock.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=path)
    assert [t.projection for t in slamkern.apply_selection(model, [1])] == ["up", "down"]


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("AriaText", {"moe_num_experts": 4}, "shared expert beside routed ones"),
        ("GraniteMoeShared", {"shared_intermediate_size": 48}, "shared expert beside routed ones"),
        ("GptOss", {"num_local_experts": 4}, "mixture of experts"),
        ("JetMoe", {"kv_channels": 8, "num_key_value_heads": 4}, "mixture of experts"),
        ("Bert", {"is_decoder": True}, "BertIntermediate is half an FFN: its other projection is in another module"),
        # Experts lie end to end in one matrix; its attention reads a base that its configuration does not have.
        (
            "Dbrx",
            {"d_model": 32, "n_heads": 4, "n_layers": 2, "attn_config": {"rope_theta": 1e4}},
            "DbrxExpertGLU multiplies by parameters of its own",
        ),
        ("BitNet", {}, "BitNetMLP.forward is not a known FFN: .* ffn_sub_norm"),
    ],
)
def test_what_is_no_ffn_of_its_layer_says_why(name, overrides, reason):
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**SIZES | overrides))
    with pytest.raises(slamkern.SlamkernError, match="cannot be fused"):
        slamkern.patch_model(model)
    rows = slamkern.explain(slamkern.patch_model(model, strict=False))
    assert not any(row.fused for row in rows)
    assert any(re.search(reason, str(row.reason)) for row in rows)


def test_the_mixer_of_a_state_space_layer_is_no_ffn_nor_its_norm_an_rms_norm(input_ids):
    sizes = SIZES | {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
    stock = AutoModelForCausalLM.from_config(transformers.BambaConfig(**sizes)).eval()
    model = slamkern.patch_model(copy.deepcopy(stock))
    assert [row.kind for row in slamkern.explain(model)] == ["gated"] * 2
    assert all(".mamba." not in norm.path for norm in slamkern.explain(model).norms if norm.reason is None)
    with torch.no_grad():
        outputs = [each(input_ids=input_ids, use_cache=False).logits for each in (model, stock)]
    torch.testing.assert_close(*outputs)
