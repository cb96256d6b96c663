"""apply_selection: exactly these weights, the published counts, and what it refuses."""

import dataclasses

import pytest
import torch
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig

import slamkern
from slamkern.probe.stats import model_signature
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trainable_tensors, trained_sizes

LLAMA_2 = {
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}


# Up and down of six layers: 6 * 2 * hidden_size * intermediate_size; shares as in arXiv 2501.03681 (6.5 to 8 %).
@pytest.mark.parametrize(
    ("size", "preset", "trained", "share"),
    [("7b", "slam-7b-paper", 541_065_216, 8.03), ("13b", "slam-13b", 849_346_560, 6.53)],
)
def test_published_parameter_counts(size, preset, trained, share):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32000, **LLAMA_2[size]))
    chosen = slamkern.apply_selection(model, slamkern.LayerSelection.preset(preset))
    assert sum(trainable.parameter.numel() for trainable in chosen) == trained
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert round(100 * trained / sum(p.numel() for p in model.parameters()), 2) == share


@pytest.mark.parametrize("patched", [False, True])
def test_exactly_the_selected_weights_require_grad(patched):
    # Layer 1 of 12: a match by substring would also take layers 10 and 11.
    model = tiny_model("llama-bias", num_hidden_layers=12)
    if patched:
        slamkern.patch_model(model)
    chosen = slamkern.apply_selection(model, [1])
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    assert {trainable.name for trainable in chosen} == names
    assert trainable_tensors(model) == chosen
    assert [(t.layer, t.projection) for t in chosen] == [(1, "up"), (1, "down")]
    slamkern.apply_selection(model, (3, 0), projections=("gate",))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"model.layers.0.mlp.gate_proj.weight", "model.layers.3.mlp.gate_proj.weight"}


@pytest.mark.parametrize(
    ("family", "projections", "names"),
    [
        ("phi3", ("gate", "up", "down"), {"mlp.gate_up_proj.weight", "mlp.down_proj.weight"}),
        ("gpt2", ("up", "down"), {"mlp.c_fc.weight", "mlp.c_proj.weight"}),
        ("opt", ("up", "down"), {"fc1.weight", "fc2.weight"}),
        ("gpt_neox", ("down",), {"mlp.dense_4h_to_h.weight"}),
    ],
)
def test_other_families(family, projections, names):
    model = tiny_model(family)
    chosen = slamkern.apply_selection(model, [2], projections)
    assert {trainable.name.split(".2.")[1] for trainable in chosen} == names


def test_refusals_change_nothing(llama):
    before = [p.requires_grad for p in llama.parameters()]
    selection = LayerSelection((0,), model="other", signature="llama-32-4096-11008", num_layers=32)
    cases = [
        ((llama, [4]), {}, "layers out of range: 4; the model has layers 0 to 3"),
        ((llama, []), {}, "layers out of range: none"),
        ((llama, [0], ("up", "out")), {}, r"unknown projections \['out'\]; known: gate up down"),
        ((llama, [0], ()), {}, "unknown projections"),
        ((llama, selection), {}, "made for other .llama-32-4096-11008., this model is llama-4-32-48"),
        ((llama, slamkern.LayerSelection.preset("slam-13b")), {}, "is for 40 layers, the model has 4"),
        ((tiny_model("phi3"), [0], ("gate",)), {}, "keeps gate and up in one weight .*; train up, or gate and up"),
        ((tiny_model("phi3"), [0]), {}, "up without gate, a half of one weight, of layer 0 need .*; patch_model first"),
        ((tiny_model("gpt2"), [0], ("gate", "up")), {}, "has no gate; train projections from: up down"),
        ((torch.nn.Linear(2, 2), [0]), {}, "has no FFN"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(slamkern.SlamkernError, match=message):
            slamkern.apply_selection(*arguments, **options)
    assert [p.requires_grad for p in llama.parameters()] == before


def test_a_selection_made_for_this_model_is_accepted(llama):
    selection = LayerSelection((1, 2), signature=model_signature(llama.config), num_layers=4)
    assert len(slamkern.apply_selection(llama, selection)) == 4
    assert len(slamkern.apply_selection(llama, dataclasses.replace(selection, signature=""))) == 4


def test_trainable_parameters_are_printed_in_pefts_words(llama, capsys):
    slamkern.apply_selection(llama, [0])
    slamkern.print_trainable_parameters(llama)
    total = sum(parameter.numel() for parameter in llama.parameters())
    trained = 2 * 32 * 48
    expected = f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("family", "neurons"),
    [("llama", None), ("phi3", None), ("gpt2", None), ("llama", {1: (0, 5)}), ("phi3", {1: (3,)})],
)
def test_sizes_are_those_of_what_is_trained_and_need_no_weights(family, neurons):
    selection = LayerSelection((1,), neurons=neurons)
    model = slamkern.patch_model(tiny_model(family))
    expected = [trainable.parameter.numel() for trainable in slamkern.apply_selection(model, selection)]
    bare = tiny_model(family).to("meta")
    flags = [parameter.requires_grad for parameter in bare.parameters()]
    assert trained_sizes(bare, selection) == expected
    assert [parameter.requires_grad for parameter in bare.parameters()] == flags
