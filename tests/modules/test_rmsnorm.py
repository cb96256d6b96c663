"""RMS norms: recognized by what they compute, equal to stock within rounding, and sparing with what they save."""

import copy
import itertools

import pytest
import torch
from support.kernel_checks import DEVICE
from support.tiny_models import FAMILIES, tiny_model
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

import slamkern
from slamkern.modules.rmsnorm import FusedNorm, Norm, RMSNorm, find_norms, fuse_norm
from slamkern.ops.dispatch import backends

STOCK = {"llama": LlamaRMSNorm, "olmo2": Olmo2RMSNorm, "gemma": Gemma2RMSNorm}
BACKENDS = [name for name, reason in backends(DEVICE).items() if reason is None]
RMS_FAMILIES = {
    family: {"qwen3": "llama", "olmo2": "olmo2", "gemma2": "gemma", "gemma3": "gemma"}.get(family, "llama")
    for family in FAMILIES
    if family not in ("gpt_neox", "gpt2", "opt", "falcon")
}


def stock_norm(style, width=48, dtype=torch.float32, eps=1e-5):
    norm = STOCK[style](width, eps=eps)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm.to(DEVICE, dtype)


def truth(style, x, weight, eps=1e-5):
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed * (1 + weight if style == "gemma" else weight)


def rows(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def gradients(function, grad, *tensors):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    y = function(*tensors)
    return y.detach(), *torch.autograd.grad(y, tensors, grad.to(y.dtype))


def worst(actual, expected):
    return float((actual.double() - expected).abs().max()) if expected.numel() else 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", STOCK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 48), (3, 5, 2, 33)])  # a matrix, and heads of an odd width
def test_error_is_at_most_twice_that_of_stock(style, dtype, shape, backend):
    stock = stock_norm(style, shape[-1], dtype)
    # From far above to far below sqrt(eps), where eps decides.
    x = (rows(*shape) * torch.logspace(-4, 2, shape[0], device=DEVICE).view(-1, *[1] * (len(shape) - 1))).to(dtype)
    grad = rows(*shape, dtype=dtype, seed=2)
    norm = Norm(1e-5, style, backend)
    exact = gradients(lambda x, w: truth(style, x, w), grad, x.double(), stock.weight.double())
    theirs = gradients(lambda x, w: torch.func.functional_call(stock, {"weight": w}, (x,)), grad, x, stock.weight)
    ours = gradients(lambda x, w: RMSNorm.apply(x, w, norm), grad, x, stock.weight)
    # The interpreter of Triton truncates where it should round to bfloat16: one more unit in the last place.
    ulps = 2 if backend == "triton" and dtype != torch.float32 else 1
    for name, expected, other, actual in zip(("y", "dx", "dw"), exact, theirs, ours, strict=True):
        assert actual.dtype == dtype and actual.shape == expected.shape
        scale = torch.finfo(dtype).eps * float(expected.abs().max())
        assert worst(actual, expected) <= 2 * worst(other, expected) + ulps * scale, name


@pytest.mark.parametrize("style", STOCK)
def test_gradcheck_of_every_frozen_subset(style):
    norm = Norm(1e-5, style, "reference")
    for trained in itertools.product([True, False], repeat=2):
        if any(trained):
            x, weight = (
                rows(*shape, seed=seed).double().requires_grad_(on)
                for seed, (shape, on) in enumerate(zip([(4, 7), (7,)], trained, strict=True))
            )
            assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, norm), (x, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    x, weight, grad = rows(5, 12), rows(12, seed=1), rows(5, 12, seed=2)
    ops = torch.ops.slamkern
    for style in STOCK:
        torch.library.opcheck(ops.rms_norm.default, (x, weight, 1e-5, style, backend))
        rstd = ops.rms_norm(x, weight, 1e-5, style, backend)[1]
        torch.library.opcheck(ops.rms_norm_backward.default, (grad, x, weight, rstd, style, backend))
    with pytest.raises(ValueError, match="unknown style"):
        ops.rms_norm(x, weight, 1e-5, "layer", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_empty_inputs_and_gradients(backend):
    norm, weight = Norm(1e-5, "llama", backend), rows(8, seed=1)
    wide = rows(4, 16)
    for x in (wide[:, 4:12], rows(8, 4).T, rows(4, 2, 8).transpose(0, 1), rows(0, 8)):
        y, dx = gradients(lambda x: RMSNorm.apply(x, weight, norm), torch.ones(1).expand(x.shape), x)
        expected, expected_dx = gradients(lambda x: truth("llama", x, weight), torch.ones(1).expand(x.shape), x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(dx, expected_dx, rtol=1e-5, atol=1e-6)
    x = wide.clone().requires_grad_()
    y = RMSNorm.apply(x, rows(16), norm)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(x, wide)  # nothing that was saved is written to


def saved_bytes(module, x):
    kept = {}

    def pack(tensor):
        if tensor is not module.weight:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    return sum(kept.values()) if y.requires_grad else 0


@pytest.mark.parametrize("style", STOCK)
def test_the_input_and_one_number_a_row_are_saved(style):
    stock = stock_norm(style, 64, torch.bfloat16).requires_grad_(False)
    fused = copy.deepcopy(stock)
    fuse_norm(fused, find_norms(nn.Sequential(fused))[0].part)
    x = rows(10, 64, dtype=torch.bfloat16).requires_grad_()
    assert saved_bytes(fused, x) == 10 * (64 * 2 + 4)
    assert saved_bytes(stock, x) >= 10 * 64 * 4
    assert saved_bytes(fused, x.detach()) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_every_family(family, input_ids):
    stock = tiny_model(family)
    model = slamkern.patch_model(copy.deepcopy(stock))
    norms = slamkern.explain(model).norms
    fused = [found for found in norms if isinstance(found.module, FusedNorm)]
    if family not in RMS_FAMILIES:
        assert norms and not fused and "not fused: LayerNorm" in str(slamkern.explain(model))
        return
    layer_norms = {"gemma2": 4, "gemma3": 6, "qwen3": 4, "olmo2": 4}.get(family, 2)
    assert len(fused) == len(norms) == 4 * layer_norms + 1
    assert {found.part.style for found in fused} == {RMS_FAMILIES[family]}
    assert "norm: fused (RMS norm" in str(slamkern.explain(model))

    exact = copy.deepcopy(stock).double()
    # Trained norms and frozen ones, in one model.
    for each in (stock, model, exact):
        for name, parameter in each.named_parameters():
            parameter.requires_grad_("layers.2." in name or ("layers.1." in name and "norm" not in name))
    losses = [each(input_ids=input_ids, labels=input_ids).loss for each in (stock, model, exact)]
    for loss in losses:
        loss.backward()
    for (name, theirs), ours, expected in zip(
        stock.named_parameters(), model.parameters(), exact.parameters(), strict=True
    ):
        assert (ours.grad is None) == (theirs.grad is None) == (not ours.requires_grad), name
        if ours.grad is not None:
            floor = 4 * torch.finfo(torch.float32).eps * float(expected.grad.abs().max())
            assert worst(ours.grad, expected.grad) <= 2 * worst(theirs.grad, expected.grad) + floor, name


def test_patching_norms_is_optional_idempotent_and_undone(llama, input_ids):
    keys, classes = list(llama.state_dict()), [type(module) for module in llama.modules()]
    slamkern.patch_model(llama, norms=False)
    assert not any(isinstance(module, FusedNorm) for module in llama.modules())
    assert "model.norm: can be fused (RMS norm, llama)" in str(slamkern.explain(llama))
    for _ in range(2):
        slamkern.patch_model(llama)
        assert sum(isinstance(module, FusedNorm) for module in llama.modules()) == 9
    assert list(llama.state_dict()) == keys
    slamkern.patch_model(llama, norms=False)
    assert not any(isinstance(module, FusedNorm) for module in llama.modules())
    slamkern.patch_model(llama)
    slamkern.unpatch_model(llama)
    assert [type(module) for module in llama.modules()] == classes
    with slamkern.patched(llama):
        assert isinstance(llama.model.norm, FusedNorm)
    assert type(llama.model.norm) is LlamaRMSNorm


class Clamped(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class WithMean(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class InHalf(LlamaRMSNorm):
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.parametrize("other", [Clamped, WithMean, InHalf])
def test_a_norm_that_computes_something_else_is_left_alone(llama, other):
    llama.model.norm.__class__ = other
    llama.model.layers[1].input_layernorm.forward = lambda x: x
    slamkern.patch_model(llama)
    assert type(llama.model.norm) is other
    left = {found.path for found in slamkern.explain(llama).norms if found.part is None}
    assert left == {"model.norm", "model.layers.1.input_layernorm"}
    assert f"model.norm: not fused: {other.__name__} is not an RMS norm" in str(slamkern.explain(llama))


def test_recognition_reads_epsilon_and_tells_the_styles_apart():
    for style, eps in itertools.product(STOCK, (1e-5, 1e-6)):
        (found,) = find_norms(nn.Sequential(stock_norm(style, 40, eps=eps)))
        assert (found.path, found.part.style, found.part.eps) == ("0", style, eps)


class TwoNumbers(LlamaRMSNorm):
    """Has two numbers that are its epsilon, of which it reads the second."""

    def __init__(self):
        super().__init__(8, eps=1e-5)
        self.__dict__ = {"first": 1e-5} | self.__dict__


def test_of_two_numbers_the_epsilon_is_the_one_that_counts():
    (found,) = find_norms(nn.Sequential(TwoNumbers()))
    assert found.part.attribute == "variance_epsilon"


def test_autocast_over_float32_weights_matches_stock(input_ids):
    stock = tiny_model("qwen3")  # norms heads, whose projections are bfloat16 under autocast
    model = slamkern.patch_model(copy.deepcopy(stock))
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (each(input_ids=input_ids, labels=input_ids) for each in (stock, model))
    assert actual.logits.dtype == expected.logits.dtype
    torch.testing.assert_close(actual.loss, expected.loss, rtol=2e-2, atol=2e-2)
    actual.loss.backward()


def test_a_compiled_norm_has_no_graph_break(llama):
    slamkern.patch_model(llama)
    for parameter in llama.model.norm.parameters():
        parameter.requires_grad_(False)
    compiled = torch.compile(llama.model.norm, fullgraph=True, backend="aot_eager")
    x = rows(2, 5, 32).requires_grad_()
    (expected,) = torch.autograd.grad(llama.model.norm(x).square().sum(), x)
    (actual,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(actual, expected)
