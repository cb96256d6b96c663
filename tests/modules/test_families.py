"""Architectures that need more than the common shapes: the right module is fused, and computes what it did."""

import copy

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
    assert len(slamkern.apply_selection(model, [1], ["up", "down"] if kind != "gate_up" else ["down"])) in (1, 2)
