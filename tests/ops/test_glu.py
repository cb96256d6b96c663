"""The registered ops: schema, shapes, gradients, compilation, and what their public functions refuse."""

import pytest
import torch

import slamkern
from slamkern import ops
from slamkern.ops import ACTIVATIONS, reference
from slamkern.ops.dispatch import backends

BACKENDS = [name for name, reason in backends("cpu").items() if reason is None]


def sample(tokens=7, neurons=11, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gate, up, grad = (torch.randn(tokens, neurons, generator=generator, dtype=dtype) for _ in range(3))
    ids = torch.randint(-1, 3, (tokens,), generator=generator, dtype=torch.int32)
    return gate, up, grad, ids


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [True, False])
def test_opcheck(backend, gated):
    gate, up, grad, ids = sample()
    gate.requires_grad_()
    up = up.requires_grad_() if gated else None
    namespace = torch.ops.slamkern
    torch.library.opcheck(namespace.swiglu.default, (gate, up, "silu", backend))
    torch.library.opcheck(namespace.swiglu_stats.default, (gate, up, ids, 3, "gelu", "hidden", backend))
    gate, up = gate.detach(), up.detach() if gated else None
    for need_hidden, need_gate in ((True, True), (False, True), (True, False)):
        arguments = (grad, gate, up, "gelu_tanh", need_hidden, backend, need_gate)
        torch.library.opcheck(namespace.swiglu_backward.default, arguments)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    gate, up, _, ids = sample(dtype=torch.float64)
    gate, up = gate.requires_grad_(), up.requires_grad_()
    assert torch.autograd.gradcheck(lambda g, u: ops.swiglu(g, u, activation), (gate, up))
    assert torch.autograd.gradcheck(lambda g: ops.swiglu(g, None, activation), (gate,))
    assert torch.autograd.gradcheck(lambda g, u: ops.swiglu_stats(g, u, ids, 3, activation)[0], (gate, up))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backend_agrees_with_the_oracle(backend, activation, dtype):
    gate, up, grad, ids = sample(tokens=33, neurons=29, dtype=dtype)
    wide = [tensor.double() for tensor in (grad, gate, up)]
    expected, moments = ops.swiglu_stats(wide[1], wide[2], ids, 3, activation, "hidden")
    hidden, actual = ops.swiglu_stats(gate, up, ids, 3, activation, "hidden", backend)
    stock = reference.activate(gate, activation) * up
    floor = torch.finfo(dtype).eps * expected.abs().max()
    assert (hidden - expected).abs().max() <= 2 * (stock - expected).abs().max() + floor
    assert torch.equal(actual.count, moments.count) and torch.equal(actual.active, moments.active)
    torch.testing.assert_close(actual.mean, moments.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.m2, moments.m2, rtol=1e-5, atol=1e-6)
    truth = reference.swiglu_backward(*wide, activation, True)
    outputs = torch.ops.slamkern.swiglu_backward(grad, gate, up, activation, True, backend)
    for exact, given in zip(truth, outputs, strict=True):
        assert (given - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_sum_has_stride_zero(backend):
    gate, up, _, _ = sample()
    gate.requires_grad_()
    ops.swiglu(gate, up, backend=backend).sum().backward()
    wide = gate.detach().double().requires_grad_()
    ops.swiglu(wide, up.double()).sum().backward()
    torch.testing.assert_close(gate.grad.double(), wide.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice_gives_the_same(backend):
    gate, up, _, _ = sample()
    gate.requires_grad_()
    out = ops.swiglu(gate, up, backend=backend).square().sum()
    (first,) = torch.autograd.grad(out, gate, retain_graph=True)
    (second,) = torch.autograd.grad(out, gate)
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_of_a_fused_projection_and_empty_batches(backend):
    halves = torch.randn(5, 26)
    gate, up = halves[:, :13], halves[:, 13:]
    torch.testing.assert_close(ops.swiglu(gate, up, backend=backend), ops.swiglu(gate.clone(), up.clone()))
    hidden, moments = ops.swiglu_stats(halves[:0, :13], None, torch.zeros(0, dtype=torch.int32), 2, backend=backend)
    assert hidden.shape == (0, 13)
    assert not any(tensor.any() for tensor in vars(moments).values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend):
    gate, up, _, ids = sample()
    gate.requires_grad_()

    def step(gate, up, ids):
        hidden, moments = ops.swiglu_stats(gate, up, ids, 3, backend=backend)
        return hidden.sum(), moments.mean

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(gate, up, ids), step(gate, up, ids), strict=True):
        torch.testing.assert_close(actual, expected)
    (actual,) = torch.autograd.grad(compiled(gate, up, ids)[0], gate)
    (expected,) = torch.autograd.grad(step(gate, up, ids)[0], gate)
    torch.testing.assert_close(actual, expected)


def test_statistics_carry_no_gradient():
    gate, up, _, ids = sample()
    _, moments = ops.swiglu_stats(gate.requires_grad_(), up, ids, 3)
    assert not any(tensor.requires_grad for tensor in vars(moments).values())


def test_no_language_ids_means_no_statistics():
    gate, up, _, _ = sample()
    hidden, moments = ops.swiglu_stats(gate, up, None, 3)
    assert moments is None
    assert torch.equal(hidden, ops.swiglu(gate, up))


def test_bad_arguments_are_refused():
    gate, up, _, ids = sample()
    cases = [
        (lambda: ops.swiglu(gate[0], None), r"gate has shape \(11,\); expected \(tokens, neurons\)"),
        (lambda: ops.swiglu(gate.int(), None), "gate is torch.int32"),
        (lambda: ops.swiglu(gate, up[:, :3]), r"up is \(7, 3\)"),
        (lambda: ops.swiglu(gate, up.double()), "torch.float64 on cpu; expected gate's"),
        (lambda: ops.swiglu(gate, up, "mish"), "unknown activation 'mish'; known: silu gelu"),
        (lambda: ops.swiglu(gate, up, backend="cuda"), "unknown backend 'cuda'; known: auto"),
        (lambda: ops.swiglu_stats(gate, up, ids, 3, observe="up"), "unknown observable 'up'; known: gate hidden"),
        (lambda: ops.swiglu_stats(gate, up, ids[:3], 3), r"language_ids is \(3,\)"),
        (lambda: ops.swiglu_stats(gate, up, ids.long(), 3), "torch.int64; expected"),
        (lambda: ops.swiglu_stats(gate, up, ids, 0), "num_languages is 0"),
    ]
    for call, message in cases:
        with pytest.raises(slamkern.SlamkernError, match=message):
            call()
