"""The gated FFN Function: every frozen subset has the right gradients, the right Nones, and saves what it must."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.tiny_models import tiny_model

import slamkern
from slamkern.modules.ffn_autograd import FFNOptions, GatedFFN
from slamkern.ops import glu

TOKENS, HIDDEN, NEURONS = 5, 8, 12
NAMES = ("x", "w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")


def inputs(trained, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, HIDDEN), *[(NEURONS, HIDDEN)] * 2, (HIDDEN, NEURONS), (NEURONS,), (NEURONS,), (HIDDEN,)]
    tensors = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name in trained)
    return tensors


def stock(x, w_gate, w_up, w_down, b_gate, b_up, b_down):
    return F.linear(F.silu(F.linear(x, w_gate, b_gate)) * F.linear(x, w_up, b_up), w_down, b_down)


@pytest.mark.parametrize("recompute", [False, True])
def test_every_frozen_subset_matches_autograd(recompute):
    subsets = itertools.chain.from_iterable(itertools.combinations(NAMES, size) for size in range(1, len(NAMES) + 1))
    for trained in subsets:
        tensors = inputs(trained)
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        expected = torch.autograd.grad(stock(*tensors).square().sum(), wanted)
        y = GatedFFN.apply(*tensors, None, None, None, FFNOptions("silu", "auto", recompute))
        y.square().sum().backward()
        for tensor in tensors:
            assert (tensor.grad is not None) == tensor.requires_grad, trained
        for tensor, gradient in zip(wanted, expected, strict=True):
            torch.testing.assert_close(tensor.grad, gradient)


def saved_bytes(trained, recompute=False):
    """Bytes kept for the backward beside the weights themselves, each storage once."""
    tensors = inputs(trained)
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors[1:]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = GatedFFN.apply(*tensors, None, None, None, FFNOptions("silu", "auto", recompute))
    assert out is not None
    return sum(kept.values())


@pytest.mark.parametrize(
    ("trained", "recompute", "per_token"),
    [
        (("x",), False, 2 * NEURONS),  # frozen: gate and up
        (("x",), True, HIDDEN),  # frozen, recomputed: the input
        (("x", "w_up", "w_down"), False, HIDDEN + 2 * NEURONS),
        (("w_up", "w_down"), False, HIDDEN + 2 * NEURONS),
        (("x", "w_up", "w_down"), True, HIDDEN),
        (("w_down",), False, NEURONS),  # only what down_proj read
        (("b_down",), False, 0),
    ],
)
def test_exactly_what_the_backward_reads_is_saved(trained, recompute, per_token):
    assert saved_bytes(trained, recompute) == TOKENS * per_token * 8


def test_a_layer_below_the_lowest_trained_one_saves_nothing(llama, input_ids):
    slamkern.patch_model(llama)
    slamkern.apply_selection(llama, [2])
    graphs = []
    for layer in llama.model.layers:
        layer.register_forward_hook(lambda module, args, out: graphs.append(out.requires_grad))
    llama(input_ids=input_ids)
    assert graphs == [False, False, True, True]


def test_frozen_layers_get_no_gradient_and_trained_ones_the_right_one(input_ids):
    whole, selected = tiny_model(), slamkern.patch_model(tiny_model())
    trained = {trainable.name for trainable in slamkern.apply_selection(selected, [1, 3])}
    for model in (whole, selected):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in selected.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        if name in trained:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_the_lowest_layer_computes_no_gradient_of_a_frozen_gate(monkeypatch):
    asked = []
    backward = glu.eager_swiglu_backward
    monkeypatch.setattr(glu, "eager_swiglu_backward", lambda *args: asked.append(args[-1]) or backward(*args))
    for trained in (("w_up", "w_down"), ("x", "w_up"), ("w_gate",), ("b_gate",)):
        y = GatedFFN.apply(*inputs(trained), None, None, None, FFNOptions("silu", "auto"))
        y.sum().backward()
    assert asked == [False, True, True, True]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_second_derivative_is_refused(family, input_ids):
    """Also where torch.autograd.grad would find a way around the fused part, and return what that leaves."""
    model = slamkern.patch_model(tiny_model(family))
    loss = model(input_ids=input_ids, labels=input_ids).loss
    with pytest.raises(slamkern.SlamkernError, match=r"no second derivative .*; unpatch_model\(model\)"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    torch.autograd.grad(loss, list(model.parameters()))
