"""Statistics cost an FFN nothing but the work of its one kernel: no launch, no memory, however many languages."""

import pytest
import torch
from support.tiny_models import FAMILIES, tiny_model

import slamkern
from benchmarks.launch_counts import counted
from slamkern.modules.ffn import Fused
from slamkern.ops import glu
from slamkern.ops.dispatch import backends
from slamkern.ops.moments import Moments, merge_moments_

pytestmark = pytest.mark.skipif(backends("cpu")["triton"] is not None, reason=str(backends("cpu")["triton"]))
TOKENS = 300
KINDS = {"gated": "llama", "gate_up": "phi3", "plain": "gpt2"}
LANGUAGES = [f"l{number}" for number in range(32)]


def fused(kind, trained):
    """A fused module, and the input of its forward: of the whole FFN, or of the activation alone ("plain")."""
    model = slamkern.patch_model(tiny_model(KINDS[kind]), backend="triton").requires_grad_(trained)
    module = next(module for module in model.modules() if isinstance(module, Fused))
    assert module.slamkern_ffn.kind == kind == FAMILIES[KINDS[kind]][2]
    width = module.slamkern_ffn.neurons if kind == "plain" else 32
    return model, module, torch.randn(1, TOKENS, width)


def recorded(model, module, x, languages):
    """Counts of a forward, and a backward where there is a gradient, with statistics of so many languages."""
    ids = torch.arange(TOKENS)[None] * languages // TOKENS
    with slamkern.record_stats(model, LANGUAGES[:languages]) as recorder, recorder.tokens(ids):
        return counted(lambda: run(module, x))


def run(module, x):
    y = module(x)
    if y.requires_grad:
        y.sum().backward()


@pytest.mark.parametrize("mode", ["inference", "frozen", "trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_launches_allocations_and_bytes_are_those_without_statistics(kind, mode):
    grad = mode != "inference"
    model, module, x = fused(kind, trained=mode == "trained")
    x.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        run(module, x)  # gradients of parameters are allocated
        alone = counted(lambda: run(module, x))
        one, many = (recorded(model, module, x, languages) for languages in (1, 32))
    backward = ["swiglu_backward_kernel"] * grad
    assert alone.launches == ["swiglu_kernel", *backward] and one.launches == ["swiglu_stats_kernel", *backward]
    assert one == many and one[1:] == alone[1:] and alone.allocations > 0


def test_the_counters_see_moments_made_anew_and_a_launch_more(monkeypatch):
    """As if a forward under autograd made its own moments and merged them."""
    model, module, x = fused("plain", trained=False)
    x.requires_grad_()
    usual = recorded(model, module, x, 32)

    def combine(gate, up, activation, backend, recording):
        into = recording.moments.tensors
        hidden, added = glu.swiglu_stats(
            gate, up, recording.language_ids, len(into[0]), activation, recording.observe, backend
        )
        merge_moments_(into, added.tensors)
        return glu.combine(hidden, None, "relu", backend, None)

    monkeypatch.setattr("slamkern.modules.ffn.glu", type("glu", (), {"combine": staticmethod(combine)}))
    made = recorded(model, module, x, 32)
    assert made.launches == ["swiglu_stats_kernel", "swiglu_kernel", *["swiglu_backward_kernel"] * 2]
    moments = sum(tensor.nbytes for tensor in Moments.zeros(32, module.slamkern_ffn.neurons).tensors)
    assert made.allocations >= usual.allocations + 4 and made.bytes >= usual.bytes + moments
