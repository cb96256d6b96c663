"""Weights in FP8: bounded errors in both directions, one and the same weight in both, nothing kept for the backward."""

import copy
import itertools

import pytest
import torch
from support.dispatched import Dispatched
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from slamkern.errors import SlamkernError
from slamkern.modules.ffn_autograd import FFNOptions, GatedFFN
from slamkern.modules.fp8_linear import FP8Linear, FP8Weight, input_gradient, project, weight_of
from slamkern.modules.surgery import extend
from slamkern.ops import reference

# Half a unit in the last place of 3 bits, at worst; on average over values of all sizes it is much less.
ROUNDING = 2**-4


def normal(*shape, dtype=torch.float32, seed=0, spread=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.logspace(-spread, spread, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return (torch.randn(*shape, generator=generator) * rows).to(dtype)


def linear(out, width, dtype=torch.float32, bias=True, keep=True):
    module = nn.Linear(width, out, bias=bias)
    with torch.no_grad():
        module.weight.copy_(normal(out, width, seed=1, spread=1.0) / width**0.5)
    stock = module.requires_grad_(False).to(dtype)
    module = copy.deepcopy(stock)
    extend(module, FP8Linear, slamkern_fp8=FP8Weight(module.weight, keep_transposed=keep))
    return stock, module


def relative(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantized_rows_are_the_nearest_e4m3_numbers(dtype):
    x = normal(7, 96, dtype=dtype, spread=4.0 if dtype != torch.float16 else 2.0)
    multiplier = normal(96, seed=1).abs()
    for scaled, arguments in ((x.double(), (x, None)), (x.double() * multiplier.double(), (x, multiplier))):
        values, scale = torch.ops.slamkern.quantize_rows(*arguments, "reference")
        torch.testing.assert_close(scale.double(), scaled.abs().amax(1) / 448, rtol=1e-6, atol=0)
        assert (values.float().abs().amax(1) == 448).all()
        exact = scaled / scale.double()[:, None]
        numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        numbers = numbers[numbers.isfinite()]
        nearest = (exact[..., None] - numbers).abs().amin(-1)
        assert ((exact - values.double()).abs() <= nearest + 1e-6 * exact.abs()).all()


def test_a_row_of_zeros_or_of_tiny_numbers_has_a_scale():
    x = torch.zeros(4, 16)
    x[1, 3], x[2, 5], x[3, 7] = 1e-44, 1e-38, 3e38
    values, scale = reference.quantize_rows(x, None)
    assert (scale > 0).all() and scale.isfinite().all() and values.float().isfinite().all()
    assert not values[0].float().any()
    assert float(values[3, 7].float() * scale[3]) == pytest.approx(3e38)
    stock, _ = linear(16, 32)
    with torch.no_grad():
        stock.weight[3] = 0
    weight = FP8Weight(stock.weight)
    (y,) = project(normal(5, 32), (weight, None))
    assert y.isfinite().all() and not y[:, 3].any()
    assert weight.input_gradient(torch.zeros(5, 16)).eq(0).all()


def test_opcheck():
    for multiplier in (None, torch.rand(32)):
        torch.library.opcheck(torch.ops.slamkern.quantize_rows.default, (normal(5, 32), multiplier, "reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_forward_and_input_gradient_against_float64(dtype, shape):
    """Against the weight as quantized the error is that of quantizing one operand; against the original, of two."""
    out, width = shape
    stock, module = linear(out, width, dtype)
    x = normal(3, 11, width, dtype=dtype, seed=2).requires_grad_()
    grad = normal(3, 11, out, dtype=dtype, seed=3)
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, grad)
    assert y.dtype == dx.dtype == dtype and dx.shape == x.shape
    original, bias = stock.weight.double(), stock.bias.double()
    quantized = module.slamkern_fp8.dequantized().double()
    for weight, bound in ((quantized, 0.04), (original, 0.06)):
        assert 0.005 < relative(y.detach() - stock.bias, x.detach().double() @ weight.T) < bound
        assert 0.005 < relative(dx, grad.double() @ weight) < bound
    assert 0.01 < relative(quantized, original) < ROUNDING
    # With operands that FP8 holds exactly nothing but the weight's own rounding is left.
    exact = torch.ones(4, width, dtype=dtype)
    (y,) = project(exact, (module.slamkern_fp8, None))
    floor = 2 * torch.finfo(dtype).eps
    assert relative(y, exact.double() @ quantized.T) < floor
    assert bias.shape == (out,)


def test_both_directions_see_the_same_weight():
    """Row by row and column by column, through one-hot vectors, which FP8 holds exactly."""
    _, module = linear(32, 48)
    weight = module.slamkern_fp8
    forward = weight.project(weight.quantized(torch.eye(48)), None, torch.float32).T
    backward = weight.input_gradient(torch.eye(32))
    torch.testing.assert_close(forward, backward, rtol=1e-6, atol=0)
    torch.testing.assert_close(forward, weight.dequantized(), rtol=1e-6, atol=0)


def test_a_batch_without_tokens_has_no_rows_and_no_gradient_rows():
    _, module = linear(32, 48)
    (y,) = project(normal(0, 48), (module.slamkern_fp8, normal(32)))
    assert y.shape == (0, 32) and module.slamkern_fp8.input_gradient(y).shape == (0, 48)


def test_kept_and_made_transposed_copies_give_the_same_bits():
    kept, made = (linear(32, 48, keep=keep)[1].slamkern_fp8 for keep in (True, False))
    grad = normal(9, 32)
    assert torch.equal(kept.input_gradient(grad), made.input_gradient(grad))
    assert kept.bytes_transposed == 32 * 48 and made.bytes_transposed == 0
    assert sum(tensor.nbytes for tensor in kept.tensors()) == 2 * 32 * 48 + 4 * 32


def test_products_on_cuda_have_the_layouts_that_scaled_mm_takes(monkeypatch):
    """Shapes, strides, dtypes and scales are checked by torch on tensors without data; a CPU would take any layout."""
    calls = []
    original = torch._scaled_mm

    def recorded(*arguments, **options):
        calls.append(options["use_fast_accum"])
        return original(*arguments, **options)

    monkeypatch.setattr(torch, "_scaled_mm", recorded)
    with FakeTensorMode():
        for rows, keep in itertools.product((1, 5), (True, False)):
            weight = FP8Weight(torch.empty(48, 32, dtype=torch.bfloat16, device="cuda"), keep_transposed=keep)
            bias = torch.empty(48, dtype=torch.bfloat16, device="cuda")
            x = torch.empty(rows, 32, dtype=torch.bfloat16, device="cuda")
            (y,) = project(x, (weight, bias))
            dx = weight.input_gradient(y)
            assert (y.shape, y.dtype, dx.shape, dx.dtype) == ((rows, 48), x.dtype, x.shape, x.dtype)
        with pytest.raises(RuntimeError, match="col_major"):  # the check is on
            original(*(torch.empty(32, 32, device="cuda").to(torch.float8_e4m3fn),) * 2, *(torch.ones(1),) * 2)
    assert calls == [True, False] * 4  # fast sums forward, full ones backward


def saved_bytes(function):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function()
    assert y.requires_grad
    return sum(kept.values())


def test_a_linear_keeps_nothing_for_the_backward():
    _, module = linear(32, 48)
    x = normal(5, 48).requires_grad_()
    assert saved_bytes(lambda: module(x)) == 0
    assert not module(x.detach()).requires_grad


def test_a_gradient_of_a_sum_and_no_tokens():
    _, module = linear(32, 48)
    for rows in (6, 0):
        x = normal(6, 48)[:rows].requires_grad_()
        (dx,) = torch.autograd.grad(module(x).sum(), x)
        expected = torch.ones(rows, 32) @ module.slamkern_fp8.dequantized()
        torch.testing.assert_close(dx, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()) if rows else 0)


def ffn_arguments(in_fp8):
    """Weights of a gated FFN of width 32 with 48 neurons; those named are in FP8, the others are trained or frozen."""
    weights = {
        name: normal(*shape, seed=seed) / shape[1] ** 0.5
        for seed, (name, shape) in enumerate({"gate": (48, 32), "up": (48, 32), "down": (32, 48)}.items())
    }
    return {name: FP8Weight(weight) if name in in_fp8 else weight for name, weight in weights.items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("in_fp8", [("gate", "up", "down"), ("gate",)])
def test_the_gated_ffn_saves_what_it_saved_and_is_the_chain_of_its_linears(in_fp8, recompute):
    arguments = ffn_arguments(in_fp8)
    trained = [weight.requires_grad_() for weight in arguments.values() if isinstance(weight, torch.Tensor)]
    x = normal(11, 32, seed=9).requires_grad_()
    options = FFNOptions("silu", "reference", recompute)

    def fused(weights):
        return GatedFFN.apply(x, *weights.values(), None, None, None, None, None, None, options)

    def chain():
        gate, up = project(x, (arguments["gate"], None), (arguments["up"], None))
        return project(reference.swiglu(gate, up, "silu"), (arguments["down"], None))[0]

    y = fused(arguments)
    grad = normal(11, 32, seed=8)
    actual = torch.autograd.grad(y, [x, *trained], grad)
    torch.testing.assert_close(y, chain(), rtol=0, atol=0)
    # The same backward written out.
    gate, up = project(x.detach(), (arguments["gate"], None), (arguments["up"], None))
    grad_gate, grad_up, hidden = reference.swiglu_backward(
        input_gradient((grad, arguments["down"])), gate, up, "silu", True
    )
    with torch.no_grad():
        expected = [input_gradient((grad_gate, arguments["gate"]), (grad_up, arguments["up"]))]
    expected += [grad_up.T @ x, grad.T @ hidden] if trained else []
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-6)

    plain = {name: (w if isinstance(w, torch.Tensor) else w.dequantized()) for name, w in arguments.items()}
    of_weights = sum(weight.nbytes for weight in plain.values())
    in_parameters = sum(weight.nbytes for weight in arguments.values() if isinstance(weight, torch.Tensor))
    assert saved_bytes(lambda: fused(arguments)) - in_parameters == saved_bytes(lambda: fused(plain)) - of_weights


def test_mistakes_are_one_line():
    _, module = linear(32, 48)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(SlamkernError, match="do not run under autocast"):
        module(normal(2, 48))
    module.weight.requires_grad_()
    with pytest.raises(SlamkernError, match="in FP8 requires a gradient"):
        weight_of(module)


def test_products_of_one_input_or_one_gradient_share_what_they_can():
    """One quantization for gate and up, one sum that both products are added to, and ones that are there already."""
    terms = [(normal(5, 32, seed=seed), normal(32, 48, seed=seed)) for seed in range(2)]
    with Dispatched() as dispatched:
        input_gradient(*terms)
    assert dispatched.ops == ["aten::mm", "aten::addmm"] and len(dispatched.results) == 1

    weights = [linear(32, 48)[1].slamkern_fp8 for _ in range(2)]
    quantized = []
    for weight in weights:
        weight.quantized = lambda x, *rest, of=weight: quantized.append(of) or FP8Weight.quantized(of, x, *rest)
    project(normal(5, 48), *((weight, None) for weight in weights))
    assert len(quantized) == 1
    with Dispatched() as dispatched:
        weights[0].input_gradient(normal(5, 32))
    assert not any("ones" in op or "fill" in op for op in dispatched.ops)
