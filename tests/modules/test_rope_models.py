"""Rotary embedding in models: every family computes the same, one attention instance at a time, and is undone."""

import copy
import inspect

import pytest
import torch
from support.kernel_checks import assert_as_good
from support.tiny_models import FAMILIES, tiny_model
from transformers.models.llama import modeling_llama

import slamkern
from slamkern.data.packing import Example, collate
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.rope import NAME, FusedRotary
from slamkern.training.step_cost import SavedBytes

WITHOUT = ("gpt2", "opt")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same(family, input_ids):
    stock = tiny_model(family)
    model = slamkern.patch_model(copy.deepcopy(stock), norms=False)
    table = slamkern.explain(model)
    assert len(table.rotaries) == (0 if family in WITHOUT else 4)
    assert all(isinstance(found.module, FusedRotary) for found in table.rotaries)
    if table.rotaries:
        assert "fused (rotary embedding), 4 of them" in str(table)
    exact = copy.deepcopy(stock).double()
    outputs = [each(input_ids=input_ids, labels=input_ids) for each in (stock, model, exact)]
    assert_as_good(outputs[1].logits, outputs[0].logits, outputs[2].logits)
    for output in outputs:
        output.loss.backward()
    for (name, theirs), actual, expected in zip(
        stock.named_parameters(), model.parameters(), exact.parameters(), strict=True
    ):
        floor = 8 * torch.finfo(torch.float32).eps * float(expected.grad.abs().max())
        error, allowed = ((each.grad.double() - expected.grad).abs().max() for each in (actual, theirs))
        assert error <= 2 * allowed + floor, name


def test_interleaved_pairs_stay_as_they_are(input_ids):
    from transformers import CohereConfig, CohereForCausalLM, GPTJConfig, GPTJForCausalLM

    sizes = dict(vocab_size=96, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    llama = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    for stock in (
        CohereForCausalLM(CohereConfig(**sizes, **llama)),
        GPTJForCausalLM(GPTJConfig(n_embd=32, n_layer=1, n_head=4, rotary_dim=4, **sizes)),
    ):
        model = slamkern.patch_model(copy.deepcopy(stock.eval()))
        (found,) = slamkern.explain(model).rotaries
        assert not isinstance(found.module, FusedRotary) and "does not rotate halves" in found.reason
        assert f"{found.path}: not fused: {NAME} of transformers" in str(slamkern.explain(model)).replace(".*.", ".0.")
        torch.testing.assert_close(model(input_ids).logits, stock(input_ids).logits)


def test_patching_is_optional_idempotent_and_undone(llama, input_ids):
    classes, keys = [type(module) for module in llama.modules()], list(llama.state_dict())
    before, function = llama(input_ids).logits, modeling_llama.apply_rotary_pos_emb
    attributes = set(vars(llama.model.layers[0].self_attn))
    slamkern.patch_model(llama, rotary=False)
    assert not any(isinstance(module, FusedRotary) for module in llama.modules())
    assert "self_attn: can be fused (rotary embedding), 4 of them" in str(slamkern.explain(llama))
    for backend in ("auto", "auto", "reference"):
        slamkern.patch_model(llama, backend=backend)
        attention = [module for module in llama.modules() if isinstance(module, FusedRotary)]
        assert len(attention) == 4 and {module.slamkern_rotary_backend for module in attention} == {backend}
    assert len({type(module) for module in attention}) == 1  # what is compiled for one layer serves the next
    assert list(llama.state_dict()) == keys
    slamkern.patch_model(llama, rotary=False)
    assert not any(isinstance(module, FusedRotary) for module in llama.modules())
    with slamkern.patched(slamkern.unpatch_model(llama)):
        assert isinstance(llama.model.layers[3].self_attn, FusedRotary)
    assert [type(module) for module in llama.modules()] == classes
    assert set(vars(llama.model.layers[0].self_attn)) == attributes
    assert torch.equal(llama(input_ids).logits, before)
    assert modeling_llama.apply_rotary_pos_emb is function


def test_other_instances_of_the_class_keep_their_own(llama, monkeypatch):
    slamkern.patch_model(llama)

    def forbidden(*_):
        raise AssertionError("the module's own function ran")

    stock = tiny_model("llama")
    monkeypatch.setattr(modeling_llama, NAME, forbidden)
    llama(torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(AssertionError, match="own function"):
        stock(torch.ones(1, 3, dtype=torch.int64))


def test_the_forward_keeps_its_signature_and_copies_share_nothing(llama, input_ids):
    attention = llama.model.layers[0].self_attn
    signature = inspect.signature(attention.forward)
    slamkern.patch_model(llama)
    assert inspect.signature(attention.forward) == signature
    twin = copy.deepcopy(llama)
    slamkern.unpatch_model(llama)
    assert isinstance(twin.model.layers[0].self_attn, FusedRotary)
    torch.testing.assert_close(twin(input_ids).logits, llama(input_ids).logits)


def test_a_wrapped_forward_is_left_alone(llama):
    attention = llama.model.layers[1].self_attn
    attention.forward = lambda *args, **kwargs: type(attention).forward(attention, *args, **kwargs)
    slamkern.patch_model(llama)
    assert not isinstance(attention, FusedRotary) and isinstance(llama.model.layers[0].self_attn, FusedRotary)
    assert "layers.*.self_attn: not fused: the forward of LlamaAttention is wrapped" in str(slamkern.explain(llama))


def test_nothing_more_is_saved(llama, input_ids):
    kept = []
    for rotary in (False, True):
        slamkern.patch_model(llama, rotary=rotary)
        with SavedBytes(llama) as saved:
            llama(input_ids=input_ids, labels=input_ids)
        kept.append(dict(saved.by_module))
    assert sum(kept[1].values()) <= sum(kept[0].values())
    # The first layer keeps cos and sin for all of them.
    assert kept[1]["model.layers.1.self_attn"] == kept[0]["model.layers.1.self_attn"]


def test_generation_with_a_cache(llama, input_ids):
    options = dict(max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(input_ids))
    expected = llama.generate(input_ids, **options)
    assert torch.equal(slamkern.patch_model(llama).generate(input_ids, **options), expected)


def test_packed_rows(llama):
    batch = collate([Example(tuple(range(3, 3 + n)), tuple(range(3, 3 + n)), 0) for n in (5, 9, 1)])
    with packed_attention(llama), torch.no_grad():
        expected = llama(**batch.model_inputs).logits
        actual = slamkern.patch_model(llama)(**batch.model_inputs).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_autocast_matches_stock(llama, input_ids):
    """q and k are bfloat16 there, cos and sin float32: what the module's function returns then is float32."""
    stock = copy.deepcopy(llama)
    slamkern.patch_model(llama, norms=False)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (each(input_ids=input_ids, labels=input_ids) for each in (stock, llama))
    torch.testing.assert_close(actual.loss, expected.loss, rtol=2e-2, atol=2e-2)
    actual.loss.backward()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_compiled_without_a_graph_break_the_op_is_in_the_graph(family, input_ids):
    model, found = slamkern.patch_model(tiny_model(family)), []

    def backend(graph, _):
        found.extend(node for node in graph.graph.nodes if "rotary" in str(node.target))
        return graph

    with torch.no_grad():
        actual = torch.compile(model, fullgraph=True, backend=backend)(input_ids, use_cache=False).logits
        torch.testing.assert_close(actual, model(input_ids).logits)
    assert len([node for node in found if str(node.target).startswith("slamkern.rotary")]) == 4
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for each in (model, compiled):
        model.zero_grad()
        each(input_ids, labels=input_ids, use_cache=False).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)
