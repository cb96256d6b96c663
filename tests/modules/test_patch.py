"""patch_model over real transformers classes: same numbers, same parameters, reversible, and clear refusals."""

import copy

import pytest
import torch
import transformers
from support.tiny_models import FAMILIES, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

import slamkern
from slamkern.modules.ffn import Fused
from slamkern.ops.dispatch import backends


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_model_computes_the_same_and_comes_back(family, input_ids):
    model = tiny_model(family)
    before, keys = logits(model, input_ids), list(model.state_dict())
    parameters, forward = [id(p) for p in model.parameters()], type(model).forward
    truth = logits(copy.deepcopy(model).double(), input_ids)

    assert slamkern.patch_model(model) is model
    rows = slamkern.explain(model)
    assert [(row.layer, row.kind, row.activation) for row in rows] == [(i, *FAMILIES[family][2:]) for i in range(4)]
    assert all(row.fused for row in rows)
    after = logits(model, input_ids)
    # Error at most twice the stock model's own, plus one rounding of the largest logit.
    floor = torch.finfo(before.dtype).eps * truth.abs().max()
    assert (after - truth).abs().max() <= 2 * (before - truth).abs().max() + floor
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == parameters
    assert type(model).forward is forward

    slamkern.unpatch_model(model)
    assert torch.equal(logits(model, input_ids), before)
    assert not any(isinstance(module, Fused) for module in model.modules())
    assert not any("slamkern" in name for module in model.modules() for name in vars(module))


@pytest.mark.parametrize("family", ["llama", "llama-bias", "gemma2", "phi3", "gpt2", "opt"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_the_unpatched_model(family, recompute, input_ids):
    stock, fused = tiny_model(family), slamkern.patch_model(tiny_model(family), recompute=recompute)
    for model in (stock, fused):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    for (name, expected), actual in zip(stock.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_patching_twice_and_two_models_side_by_side(input_ids):
    first, second = tiny_model(seed=0), tiny_model(seed=1)
    expected = logits(second, input_ids)
    slamkern.patch_model(slamkern.patch_model(first))
    assert torch.equal(logits(second, input_ids), expected)
    assert not any(row.fused for row in slamkern.explain(second))
    slamkern.unpatch_model(first)
    assert not any(row.fused for row in slamkern.explain(first))


def test_patched_context_restores_only_what_it_patched(llama):
    with slamkern.patched(llama), slamkern.patched(llama):
        assert all(row.fused for row in slamkern.explain(llama))
    assert not any(row.fused for row in slamkern.explain(llama))
    slamkern.patch_model(llama)
    with slamkern.patched(llama):
        pass
    assert all(row.fused for row in slamkern.explain(llama))


def test_a_deep_copy_is_patched_on_its_own(llama, input_ids):
    slamkern.patch_model(llama)
    twin = copy.deepcopy(llama)
    slamkern.unpatch_model(llama)
    assert all(row.fused for row in slamkern.explain(twin))
    torch.testing.assert_close(logits(twin, input_ids), logits(llama, input_ids))


def test_save_and_reload(llama, input_ids, tmp_path):
    expected = logits(slamkern.patch_model(llama), input_ids)
    llama.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, input_ids), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(llama, input_ids, use_reentrant):
    stock = copy.deepcopy(llama)
    slamkern.patch_model(llama).train()
    llama.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in (stock, llama):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    for expected, actual in zip(stock.parameters(), llama.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_compiled_ffn_has_no_graph_break(llama):
    x = torch.randn(2, 5, 32, requires_grad=True)
    block = llama.model.layers[0].mlp
    expected = block(x)
    slamkern.patch_model(llama)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    actual = compiled(x)
    torch.testing.assert_close(actual, expected)
    (expected_dx,) = torch.autograd.grad(expected.sum(), x)
    (actual_dx,) = torch.autograd.grad(actual.sum(), x)
    torch.testing.assert_close(actual_dx, expected_dx)
    llama.requires_grad_(False)  # as below the lowest layer that is trained
    torch.testing.assert_close(compiled(x.detach()), expected)


def test_hugging_face_trainer_trains_the_selected_weights(llama, tmp_path):
    slamkern.patch_model(llama)
    trained = {trainable.name for trainable in slamkern.apply_selection(llama, [1])}
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    rows = [{"input_ids": [3 + i, 4, 5, 6], "labels": [3 + i, 4, 5, 6]} for i in range(8)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=2, report_to=[], save_strategy="no", use_cpu=True, learning_rate=1e-2, disable_tqdm=True
    )
    transformers.Trainer(llama, arguments, train_dataset=rows).train()
    changed = {name for name, tensor in llama.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trained == {"model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"}


def test_an_adapter_put_on_later_still_works(llama, input_ids):
    peft = pytest.importorskip("peft")
    slamkern.patch_model(llama)
    expected = logits(llama, input_ids)
    adapted = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["up_proj"], r=2, init_lora_weights=False))
    assert not torch.allclose(logits(adapted, input_ids), expected)
    adapted(input_ids=input_ids, labels=input_ids).loss.backward()
    assert adapted.base_model.model.model.layers[0].mlp.up_proj.lora_A.default.weight.grad.abs().sum() > 0


def test_autocast_matches_stock(llama, input_ids):
    stock = copy.deepcopy(llama)
    slamkern.patch_model(llama)
    with torch.autocast("cpu", torch.bfloat16):
        expected = stock(input_ids=input_ids, labels=input_ids)
        actual = llama(input_ids=input_ids, labels=input_ids)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=2e-2, atol=2e-2)
    actual.loss.backward()
    assert llama.model.layers[0].mlp.up_proj.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("MixtralConfig", {"num_local_experts": 4}, "mixture of experts"),
        ("Qwen2MoeConfig", {"num_experts": 4}, "mixture of experts"),
        ("ApertusConfig", {}, "unknown activation XIELUActivation; known: silu"),
        ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}, "mixture of experts"),
        ("LlamaConfig", {"hidden_act": "quick_gelu"}, "unknown activation QuickGELUActivation"),
    ],
)
def test_models_that_cannot_be_fused_are_refused(config, overrides, message):
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    arguments = sizes | {"num_key_value_heads": 2, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**arguments | overrides))
    with pytest.raises(slamkern.SlamkernError, match=message):
        slamkern.patch_model(model)
    assert slamkern.patch_model(model, strict=False) is model
    # What is left alone is listed with its reason.
    assert not any(row.fused for row in slamkern.explain(model))
    if message != "no FFN found":
        assert message in str(slamkern.explain(model))


class Scaled(transformers.models.llama.modeling_llama.LlamaMLP):
    def forward(self, x):
        return super().forward(x) * 0.5


def test_a_subclass_with_another_forward_is_refused_and_left_alone(llama, input_ids):
    llama.model.layers[2].mlp.__class__ = Scaled
    expected = logits(llama, input_ids)
    with pytest.raises(slamkern.SlamkernError, match=r"model\.layers\.2\.mlp cannot be fused: Scaled\.forward"):
        slamkern.patch_model(llama)
    slamkern.patch_model(llama, strict=False)
    assert [row.fused for row in slamkern.explain(llama)] == [True, True, False, True]
    torch.testing.assert_close(logits(llama, input_ids), expected)


def test_weights_that_cannot_be_computed_with_are_refused(llama):
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(llama.config)
    with pytest.raises(slamkern.SlamkernError, match="meta device; load the weights"):
        slamkern.patch_model(empty)
    llama.model.layers[3].mlp.up_proj.weight = nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(slamkern.SlamkernError, match=r"model\.layers\.3\.mlp .*quantized"):
        slamkern.patch_model(llama)


def test_an_unavailable_or_unknown_backend_is_refused_before_anything_changes(llama):
    for backend, message in (("cutlass", "unknown backend 'cutlass'; known: auto"), ("triton", "cannot run on cpu")):
        if backend == "triton" and backends("cpu")["triton"] is None:
            continue  # interpreted kernels do run on the CPU
        with pytest.raises(slamkern.SlamkernError, match=message):
            slamkern.patch_model(llama, backend=backend)
    assert not any(row.fused for row in slamkern.explain(llama))
    with pytest.raises(slamkern.SlamkernError, match="takes a torch module, not str"):
        slamkern.patch_model("llama")
