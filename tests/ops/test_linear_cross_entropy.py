"""The fused linear cross-entropy against F.cross_entropy of logits: loss, every frozen subset, memory, counted work."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from slamkern.errors import SlamkernError
from slamkern.ops.linear_cross_entropy import HeadOptions, linear_cross_entropy


def stock(hidden, weight, labels, bias=None, options=None, ignore_index=-100):
    options = options or HeadOptions()
    logits = F.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32)) * options.scale
    logits = logits if options.softcap is None else torch.tanh(logits / options.softcap) * options.softcap
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum", ignore_index=ignore_index)


def drawn(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 17, 32, generator=generator).to(dtype)
    weight = torch.randn(128, 32, generator=generator).to(dtype)
    bias = torch.randn(128, generator=generator).to(dtype)
    labels = torch.randint(128, (2, 17), generator=generator)
    labels[torch.rand(2, 17, generator=generator) < 0.4] = -100
    return hidden, weight, bias, labels


@pytest.mark.parametrize("trained", [s for s in itertools.product([False, True], repeat=3) if any(s)])
@pytest.mark.parametrize(
    "options", [HeadOptions(chunk=5), HeadOptions(scale=0.25, softcap=2.0, chunk=1024)], ids=["ragged", "capped"]
)
def test_loss_and_gradients_equal_cross_entropy(options, trained):
    hidden, weight, bias, labels = drawn()
    tensors = [each.requires_grad_(on) for each, on in zip((hidden, weight, bias), trained, strict=True)]
    asked = [each for each in tensors if each.requires_grad]
    loss = linear_cross_entropy(hidden, weight, labels, bias=bias, options=options)
    expected = stock(hidden, weight, labels, bias, options)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(*(torch.autograd.grad(each * 0.37, asked) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradcheck_in_double():
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in (6, 9))
    labels = torch.tensor([1, -100, 8, 0, -100, 3])
    options = HeadOptions(softcap=2.0, chunk=2)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, options=options), (hidden, weight))


def test_bfloat16_error_within_twice_the_stock_error():
    hidden, weight, _, labels = drawn(torch.bfloat16, seed=3)
    hidden.requires_grad_()
    weight.requires_grad_()
    wide = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    truth = stock(*wide, labels)
    # Chunks of five rows: a weight's gradient of many parts is no worse than one of a single product.
    ours = linear_cross_entropy(hidden, weight, labels, options=HeadOptions(chunk=5))
    theirs = stock(hidden, weight, labels)
    assert abs(ours - truth) <= 2 * abs(theirs - truth) + 1e-6 * truth
    for i, true in enumerate(torch.autograd.grad(truth, wide)):
        error = [
            (torch.autograd.grad(loss, (hidden, weight), retain_graph=True)[i] - true).norm() for loss in (ours, theirs)
        ]
        assert error[0] <= 2 * error[1] + torch.finfo(torch.bfloat16).eps * true.norm()


def test_autocast_computes_and_returns_what_it_does_of_torch_operations():
    hidden, weight, bias, labels = (each.requires_grad_() if each.is_floating_point() else each for each in drawn())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = linear_cross_entropy(hidden, weight, labels, bias=bias), stock(hidden, weight, labels, bias)
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (hidden, weight, bias)) for loss in losses), strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


def test_nothing_supervised_is_zero_with_a_graph():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.full((4,), 7), ignore_index=7)
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not weight.grad.any()


def test_rows_that_fill_a_bucket_count_nothing():
    hidden, weight, _, labels = drawn()
    hidden.requires_grad_()
    weight.requires_grad_()
    losses = [linear_cross_entropy(hidden, weight, labels, token_indices=i) for i in (None, torch.arange(34))]
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in losses), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("trained", [False, True])
def test_no_logits_are_saved_and_a_frozen_weight_costs_no_product(trained):
    saved, rows, width, vocabulary = [], 50, 8, 1000
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=trained)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
        FlopCounterMode(display=False) as flops,
    ):
        linear_cross_entropy(hidden, weight, torch.arange(rows)).backward()
    assert sum(saved) == hidden.numel() + (weight.numel() if trained else 0)
    one = 2 * rows * width * vocabulary
    assert flops.get_total_flops() == (3 if trained else 2) * one  # logits, dhidden, and dW
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        linear_cross_entropy(hidden, weight, torch.arange(rows))
    assert flops.get_total_flops() == one


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(SlamkernError, match=r"hidden \(2, 4\) must be labels \(3,\)"):
        linear_cross_entropy(torch.randn(2, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(SlamkernError, match=r"the weight \(5, 3\)"):
        linear_cross_entropy(torch.randn(2, 4), torch.randn(5, 3), torch.tensor([0, 1]))
