"""What is changed in a model after it was patched: another activation, another epsilon, hooks on every module."""

import copy

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)
from torch.utils.flop_counter import FlopCounterMode

import slamkern
from slamkern.modules.ffn import Fused
from slamkern.modules.rmsnorm import FusedNorm

ACTIVATIONS = {"llama": "act_fn", "phi3": "activation_fn", "gpt2": "act"}


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def block_of(model):
    return next(module for name, module in model.named_modules() if name.endswith(".1.mlp"))


def pair(family="llama"):
    stock = tiny_model(family)
    return stock, slamkern.patch_model(copy.deepcopy(stock))


def row(model):
    return str(slamkern.explain(model)[1])


@pytest.mark.parametrize("family", ACTIVATIONS)
def test_another_activation_is_run_told_and_fused_by_patching_again(family, input_ids):
    stock, model = pair(family)
    for each in (stock, model):
        setattr(block_of(each), ACTIVATIONS[family], nn.ReLU())
    expected = logits(stock, input_ids)
    torch.testing.assert_close(logits(model, input_ids), expected)
    assert "can be fused" in row(model) and "relu" in row(model)
    for each in (stock, model):
        each(input_ids=input_ids, labels=input_ids).loss.backward()
    for theirs, ours in zip(stock.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    slamkern.patch_model(model)
    assert ": fused" in row(model) and "relu" in row(model)
    torch.testing.assert_close(logits(model, input_ids), expected)
    twin = copy.deepcopy(model)
    assert ": fused" in row(twin)  # with an activation of its own


@pytest.mark.parametrize("family", ACTIVATIONS)
def test_an_activation_that_is_not_known_is_left_alone_by_patching_again(family, input_ids):
    stock, model = pair(family)
    for each in (stock, model):
        setattr(block_of(each), ACTIVATIONS[family], Halved())
    torch.testing.assert_close(logits(model, input_ids), logits(stock, input_ids))
    assert ": fused" not in row(model)
    if family != "gpt2":  # whose block is nothing known now
        assert "not fused" in row(model)
        with pytest.raises(slamkern.SlamkernError, match=r"layers\.1\.mlp cannot be fused"):
            slamkern.patch_model(model)
        slamkern.patch_model(model, strict=False)
        assert not isinstance(block_of(model), Fused)
    torch.testing.assert_close(logits(model, input_ids), logits(stock, input_ids))


def test_neurons_that_are_trained_stay_trained_with_another_activation(llama, input_ids):
    slamkern.patch_model(llama)
    names = [t.name for t in slamkern.apply_selection(llama, slamkern.LayerSelection((1,), neurons={1: (3, 5)}))]
    block_of(llama).act_fn = nn.ReLU()
    with pytest.raises(slamkern.SlamkernError, match=r"layers\.1\.mlp trains single neurons"):
        llama(input_ids=input_ids)
    slamkern.patch_model(llama)
    assert [t.name for t in slamkern.selection.trainable.trainable_tensors(llama)] == names
    llama(input_ids=input_ids, labels=input_ids).loss.backward()
    assert block_of(llama).slamkern_up.grad.any()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_another_epsilon_is_computed_with_told_and_fused_by_patching_again(family, input_ids):
    stock, model = pair(family)
    name = "variance_epsilon" if family == "llama" else "eps"
    for each in (stock, model):
        setattr(each.model.layers[1].input_layernorm, name, 5.0)
    expected = logits(stock, input_ids)
    torch.testing.assert_close(logits(model, input_ids), expected)
    assert "layers.*.input_layernorm: can be fused (RMS norm" in str(slamkern.explain(model))
    slamkern.patch_model(model)
    assert "input_layernorm: can be fused" not in str(slamkern.explain(model))
    assert model.model.layers[1].input_layernorm.slamkern_norm.eps == 5.0
    torch.testing.assert_close(logits(model, input_ids), expected)
    setattr(model.model.layers[1].input_layernorm, name, torch.full((32,), 5.0))  # no number, and not probed
    torch.testing.assert_close(logits(model, input_ids), expected)
    slamkern.patch_model(model)
    assert not isinstance(model.model.layers[1].input_layernorm, FusedNorm)
    torch.testing.assert_close(logits(model, input_ids), expected)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_hooks_on_every_module_are_honored(family, input_ids):
    stock, model = pair(family)
    kinds = nn.Linear, type(getattr(block_of(stock), ACTIVATIONS[family]))

    def halve(module, args, output):
        return output / 2 if type(module) in kinds else None

    def pre_halve(module, args):
        return (args[0] / 2,) if type(module) in kinds else None

    def halve_gradient(module, given, grad):
        return tuple(g / 2 for g in given) if type(module) in kinds else None

    before = logits(stock, input_ids)
    for register, hook in (
        (register_module_forward_hook, halve),
        (register_module_forward_pre_hook, pre_halve),
        (register_module_full_backward_hook, halve_gradient),
    ):
        handle = register(hook)
        try:
            for each in (stock, model):
                each.zero_grad()
                each(input_ids=input_ids, labels=input_ids).loss.backward()
            torch.testing.assert_close(logits(model, input_ids), logits(stock, input_ids))
        finally:
            handle.remove()
        for theirs, ours in zip(stock.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits(model, input_ids), before)


def test_a_counter_of_operations_sees_the_fused_forward(llama, input_ids):
    """Its hooks on every module only note which one runs; single neurons would be refused under any others."""
    slamkern.patch_model(llama)
    slamkern.apply_selection(llama, slamkern.LayerSelection((1,), neurons={1: (3, 5)}))
    with FlopCounterMode(display=False) as counter:
        llama(input_ids=input_ids, labels=input_ids).loss.backward()
    assert counter.get_total_flops() > 0


def test_layers_share_what_was_compiled_for_one(llama):
    slamkern.patch_model(llama.requires_grad_(False))
    x = torch.randn(2, 5, 32, requires_grad=True)
    for part in ("mlp", "input_layernorm"):
        counter = CompileCounterWithBackend("aot_eager")
        torch._dynamo.reset()
        for layer in llama.model.layers:
            torch.compile(getattr(layer, part), backend=counter, fullgraph=True)(x)
        assert counter.frame_count == 1
