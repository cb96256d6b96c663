"""Rotary embedding: recognised by what it computes, and equal to stock within rounding in every backend."""

import pytest
import torch
from support.kernel_checks import assert_as_good
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as glm
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as neox
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj
from transformers.models.llama import modeling_llama
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb as modernbert
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as olmo2

from slamkern.modules.rope import Rotary, RotaryOptions, Rotation, _fused, _recognise
from slamkern.ops.dispatch import backends

llama_rotation = modeling_llama.apply_rotary_pos_emb
BACKENDS = [name for name, reason in backends("cpu").items() if reason is None]


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
