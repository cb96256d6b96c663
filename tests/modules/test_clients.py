"""Patched models with the libraries around them: hooks, PEFT, DDP, Liger, torch.func and torch.export, experts."""

import copy
import subprocess
import sys

import pytest
import torch
import transformers
from support.tiny_models import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

import slamkern
from slamkern.modules.ffn import Fused


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_hook_on_the_activation_is_honored(family, grad, input_ids):
    stock = tiny_model(family)
    models = stock, slamkern.patch_model(copy.deepcopy(stock))
    before = logits(stock, input_ids)
    for model in models:
        act = next(
            module
            for name, module in model.named_modules()
            if name.endswith((".1.mlp.act_fn", ".1.mlp.activation_fn", ".1.mlp.act"))
        )
        act.register_forward_hook(lambda module, args, output: output * 0.5)
    with torch.set_grad_enabled(grad):
        expected, actual = (model(input_ids=input_ids).logits for model in models)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(actual, expected)
    if grad:
        for each in (expected, actual):
            each.square().mean().backward()
        for theirs, ours in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("observe", ["gate", "hidden"])
def test_statistics_are_of_what_a_hook_on_the_activation_gives(llama, tiny_tokenizer, observe):
    llama.model.layers[1].mlp.act_fn.register_forward_hook(lambda module, args, output: output * 0)
    with slamkern.record_stats(llama, ["de", "fr"], observe=observe) as recorder:
        ids = torch.arange(3, 11)[None]
        with torch.no_grad(), recorder.tokens(torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1]])):
            llama(input_ids=ids)
        stats = recorder.stats
    assert not stats.mean[:, 1].any() and not stats.active[:, 1].any()
    assert stats.mean[:, 0].any() and stats.count.tolist() == [4, 3]


@pytest.mark.parametrize("first", ["peft", "slamkern"])
def test_patched_before_or_after_an_adapter_everything_finds_its_modules(first, llama, input_ids, tiny_tokenizer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["up_proj", "q_proj"], r=2, init_lora_weights=False)
    stock = peft.get_peft_model(copy.deepcopy(llama), config)
    if first == "slamkern":
        slamkern.patch_model(llama)
    wrapped = peft.get_peft_model(llama, config)
    wrapped.load_state_dict(stock.state_dict())
    if first == "peft":
        slamkern.patch_model(wrapped)
    torch.testing.assert_close(logits(wrapped, input_ids), logits(stock, input_ids))
    rows = slamkern.explain(wrapped)
    assert [row.path for row in rows] == [f"base_model.model.model.layers.{i}.mlp" for i in range(4)]
    assert all(row.fused and "up_proj" in row.trainable for row in rows)
    trained = slamkern.apply_selection(wrapped, [1])
    assert [t.name for t in trained] == [
        "base_model.model.model.layers.1.mlp.up_proj.base_layer.weight",
        "base_model.model.model.layers.1.mlp.down_proj.weight",
    ]
    stats = slamkern.collect_stats(wrapped, tiny_tokenizer, {"de": ["ab cd"], "fr": ["gh"]}, progress=False)
    assert stats.count.all()


@pytest.mark.usefixtures("one_process")
def test_a_model_in_ddp_is_explained_selected_and_unpatched(llama, input_ids):
    slamkern.patch_model(llama)
    trained = slamkern.apply_selection(llama, [1])
    wrapped = nn.parallel.DistributedDataParallel(llama)
    assert [row.path for row in slamkern.explain(wrapped)] == [f"module.model.layers.{i}.mlp" for i in range(4)]
    wrapped(input_ids=input_ids, labels=input_ids).loss.backward()
    assert all(t.parameter.grad.abs().sum() > 0 for t in trained)
    again = slamkern.apply_selection(wrapped, [1])
    assert [t.parameter for t in again] == [t.parameter for t in trained]
    slamkern.unpatch_model(wrapped)
    assert not any(row.fused for row in slamkern.explain(wrapped))


def test_liger_put_over_a_fused_module_is_told(llama):
    pytest.importorskip("liger_kernel")
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    slamkern.patch_model(llama)
    # What liger_kernel.transformers._apply_liger_kernel_to_instance does to each module of a model.
    mlp, norm = llama.model.layers[1].mlp, llama.model.layers[2].input_layernorm
    mlp.forward = LigerSwiGLUMLP.forward.__get__(mlp)
    norm.forward = LigerRMSNorm.forward.__get__(norm)
    table = slamkern.explain(llama)
    assert [row.fused for row in table] == [True, False, True, True]
    assert "layers.1.mlp: not fused: its forward on this instance is LigerSwiGLUMLP.forward of liger_kernel" in str(
        table
    )
    assert "input_layernorm: not fused: its forward on this instance is LigerRMSNorm.forward" in str(table)
    with pytest.raises(slamkern.SlamkernError, match=r"layers\.1\.mlp cannot be fused: its forward .* liger_kernel"):
        slamkern.patch_model(llama)


def test_a_model_built_after_a_global_liger_call_is_told():
    pytest.importorskip("liger_kernel")
    code = """
from liger_kernel.transformers import apply_liger_kernel_to_llama
from transformers import LlamaConfig, LlamaForCausalLM
import slamkern
apply_liger_kernel_to_llama()
sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(bos_token_id=1, eos_token_id=2, **sizes))
print(slamkern.explain(model))
try:
    slamkern.patch_model(model)
except slamkern.SlamkernError as error:
    print("ERROR", error)
"""
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].startswith("model.layers.0.mlp: not fused: LigerSwiGLUMLP of liger_kernel computes it")
    assert lines[-1].startswith("ERROR LlamaForCausalLM: model.layers.0.mlp cannot be fused: LigerSwiGLUMLP of liger")


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_torch_func_and_export_see_the_model_as_it_was(family, input_ids):
    stock = tiny_model(family)
    model = slamkern.patch_model(copy.deepcopy(stock))

    def loss(parameters, which):
        inputs = {"input_ids": input_ids, "labels": input_ids, "use_cache": False}
        return torch.func.functional_call(which, parameters, kwargs=inputs).loss

    expected, actual = (torch.func.grad(loss)(dict(each.named_parameters()), each) for each in (stock, model))
    torch.testing.assert_close(actual, expected)
    block = model.get_decoder().layers[1].mlp if family != "gpt2" else model.get_decoder().h[1].mlp
    x = torch.randn(2, 5, 32, requires_grad=True)
    exported = torch.export.export(block, (x,)).module()
    torch.testing.assert_close(exported(x), block(x))


SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 0}


def build(config, **overrides):
    arguments = SIZES | {"num_key_value_heads": 2, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config)(**arguments | overrides)).eval()


def test_a_shared_expert_is_an_ffn_by_an_explicit_choice_alone(input_ids):
    model = build("Qwen2MoeConfig", num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=48)
    expected = logits(model, input_ids)
    slamkern.patch_model(model, strict=False)
    assert not any(isinstance(module, Fused) for module in model.modules())
    assert "shared_expert: not fused: shared expert beside routed ones; patch_model(shared_experts=True)" in str(
        slamkern.explain(model)
    )
    with pytest.raises(slamkern.SlamkernError, match="no FFN that slamkern knows"):
        slamkern.apply_selection(model, [0])
    slamkern.patch_model(model, strict=False, shared_experts=True)
    assert [row.path for row in slamkern.explain(model) if row.fused] == [
        f"model.layers.{i}.mlp.shared_expert" for i in range(2)
    ]
    torch.testing.assert_close(logits(model, input_ids), expected)
    assert {t.name for t in slamkern.apply_selection(model, [1])} == {
        f"model.layers.1.mlp.shared_expert.{name}_proj.weight" for name in ("up", "down")
    }


def test_dropout_of_the_result_stays_on_in_training_and_off_otherwise(input_ids):
    stock = build("SeedOssConfig", head_dim=8, residual_dropout=0.5, attention_dropout=0.0)
    model = slamkern.patch_model(copy.deepcopy(stock))
    torch.testing.assert_close(logits(model, input_ids), logits(stock, input_ids))
    drawn = []
    for each in (stock.train(), model.train()):
        torch.manual_seed(3)
        drawn.append(each(input_ids=input_ids).logits)
    torch.testing.assert_close(*drawn)
    assert not torch.allclose(drawn[0], logits(stock.eval(), input_ids))
