"""Rotary embedding: recognised by what it computes, equal to stock within rounding, one instance at a time."""

import copy
import inspect

import pytest
import torch
from conftest import FAMILIES, tiny_model
from kernel_checks import assert_as_good
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as glm
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as neox
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj
from transformers.models.llama import modeling_llama
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb as modernbert
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as olmo2

import slamkern
from slamkern.accounting import SavedBytes
from slamkern.attention import packed_attention
from slamkern.backends import backends
from slamkern.packing import Example, collate
from slamkern.rotary import NAME, FusedRotary, Rotary, RotaryOptions, Rotation, _fused, _recognise

llama_rotation = modeling_llama.apply_rotary_pos_emb
BACKENDS = [name for name, reason in backends("cpu").items() if reason is None]
WITHOUT = ("gpt2", "opt")


def inputs(
    dtype=torch.float32, table=None, *, batch=2, heads=3, keys=1, tokens=5, width=16, rotated=None, shared=False
):
    """q and k as projections make them (transposed views), cos and sin as a model's, and gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k, grad_q, grad_k = (
        torch.randn(batch, tokens, n, width, generator=generator).to(dtype).transpose(1, 2)
        for n in (heads, keys, heads, keys)
    )
    angles = 7 * torch.rand(1 if shared else batch, tokens, (rotated or width) // 2, generator=generator)
    angles = torch.cat((angles, angles), -1)
    return (q, k, angles.cos().to(table or dtype), angles.sin().to(table or dtype)), (grad_q, grad_k)


def results(function, tensors, grads):
    """q and k rotated and their gradients; the gradients come in the dtype of the results."""
    q, k = (tensor.detach().requires_grad_() for tensor in tensors[:2])
    outputs = function(q, k, *tensors[2:])
    return *outputs, *torch.autograd.grad(outputs, (q, k), [grad.to(outputs[0].dtype) for grad in grads])


def ours(backend, rotation=None, stock=llama_rotation):
    return _fused(stock, rotation or _recognise(stock), backend)


def assert_as_good_as_stock(function, stock, tensors, grads):
    truth = results(stock, [tensor.double() for tensor in tensors], [grad.double() for grad in grads])
    actual, theirs = results(function, tensors, grads), results(stock, tensors, grads)
    for name, one, other, exact in zip(("q", "k", "dq", "dk"), actual, theirs, truth, strict=True):
        assert_as_good(one, other, exact, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [{}, {"width": 6, "heads": 9, "keys": 3, "tokens": 70, "shared": True}])
def test_error_is_at_most_twice_that_of_stock(shape, dtype, backend):
    assert_as_good_as_stock(ours(backend), llama_rotation, *inputs(dtype, **shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stock", [llama_rotation, olmo2, modernbert])  # the first returns float32 here
def test_a_float32_table_for_bfloat16_heads(stock, backend):
    function = ours(backend, stock=stock)
    assert_as_good_as_stock(function, stock, *inputs(torch.bfloat16, torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_of_a_head_is_rotated_and_the_rest_stays(backend):
    tensors, grads = inputs(torch.bfloat16, width=20, rotated=12)
    assert_as_good_as_stock(ours(backend, stock=neox), neox, tensors, grads)
    assert torch.equal(ours(backend, stock=neox)(*tensors)[0][..., 12:], tensors[0][..., 12:])
    with pytest.raises(RuntimeError, match="must match the size"):  # what Llama's does with such a table
        ours(backend)(*tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 0), (0, 3), (3, 1)])
def test_one_token_and_none(batch, tokens, backend):
    tensors, grads = inputs(batch=batch, tokens=tokens, shared=True)
    for actual, expected in zip(
        results(ours(backend), tensors, grads), results(llama_rotation, tensors, grads), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_layout_of_inputs_and_gradients(backend):
    (q, k, cos, sin), _ = inputs()
    fused = torch.randn(2, 5, 3, 48)  # GPT-NeoX: q, k and v of a head side by side
    layouts = [
        (q.contiguous(), k.contiguous()),
        fused.transpose(1, 2).chunk(3, -1)[:2],
        (q.mT.contiguous().mT, k),  # elements that lie apart
    ]
    sums = torch.ones(1).expand(2, 3, 5, 16), torch.ones(1).expand(2, 1, 5, 16)
    for heads in layouts:
        grads = sums if heads[1].shape[1] == 1 else (sums[0], sums[0])
        tensors = (*heads, cos, sin)
        actual, expected = results(ours(backend), tensors, grads), results(llama_rotation, tensors, grads)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other)
    # Heads last but one, as some models keep them.
    tensors = (q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    for one, other in zip(ours(backend)(*tensors, unsqueeze_dim=2), llama_rotation(*tensors, 2), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_of_the_table_need_not_agree(backend):
    """The gradient reads the other half of sin."""
    (q, k, cos, sin), grads = inputs()
    tensors = q, k, torch.randn_like(cos), torch.randn_like(sin)
    assert_as_good_as_stock(ours(backend), llama_rotation, tensors, grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_gradcheck(backend):
    (q, k, cos, sin), _ = inputs(width=8)
    for inverse, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        torch.library.opcheck(torch.ops.slamkern.rotary.default, (q, k, cos, sin, inverse, dtype, backend))
    q, k, cos, sin = (tensor.double() for tensor in (q, k, torch.randn_like(cos), torch.randn_like(sin)))
    options = RotaryOptions(torch.float64, "reference")
    assert torch.autograd.gradcheck(
        lambda q, k: Rotary.apply(q, k, cos, sin, options), (q.requires_grad_(), k.requires_grad_())
    )


def test_recognition():
    assert _recognise(llama_rotation) == Rotation(partial=False, promotes=True)
    assert _recognise(olmo2) == _recognise(modernbert) == Rotation(partial=False, promotes=False)
    assert _recognise(neox) == Rotation(partial=True, promotes=True)
    assert not any(_recognise(other) for other in (gptj, glm, cohere))  # pairs of neighbours
    assert _recognise(lambda q, k, cos, sin, unsqueeze_dim=1: llama_rotation(q, k, sin, cos, unsqueeze_dim)) is None
    assert _recognise(lambda q, k, cos, sin, unsqueeze_dim=1: (q, k)) is None
    assert _recognise(print) is None


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
        floor = 4 * torch.finfo(torch.float32).eps * float(expected.grad.abs().max())
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
