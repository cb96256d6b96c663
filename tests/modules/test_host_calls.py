"""What a fused forward does on the host beside its one launch, as a count of calls: times would depend on the machine.

``python -m benchmarks.host_time`` measures what they take.
"""

import inspect
import sys

import pytest
import torch
from support.tiny_models import tiny_model

import slamkern
from benchmarks.launch_counts import stubbed_kernels
from slamkern.kernels import launch
from slamkern.modules import ffn as ffn_module
from slamkern.ops.dispatch import backends

pytestmark = pytest.mark.skipif(backends("cpu")["triton"] is not None, reason=str(backends("cpu")["triton"]))
# Calls that a forward makes, of functions in Python and in C (operators, methods of tensors), more than the stock one:
# as counted under Python 3.11 and torch 2.13 (45, 49, 105 and 109), and a tenth for other versions.
MOST = {
    ("inference", False): 50,
    ("inference", True): 54,
    ("training", False): 115,
    ("training", True): 120,
}


def calls(function):
    """How many calls are made while ``function`` runs."""
    count = 0

    def note(_, event, __):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def extra_calls(mode, statistics):
    """How many calls of a fused FFN, its kernel a stub, exceed those of the stock one."""
    stock, model = (tiny_model("llama").requires_grad_(False) for _ in range(2))
    slamkern.patch_model(model, backend="triton")
    theirs, ours, grad = stock.model.layers[0].mlp, model.model.layers[0].mlp, mode == "training"
    x, ids = torch.randn(1, 9, 32, requires_grad=grad), torch.arange(9)[None] % 4

    def extra():
        ours(x)  # fills the caches
        return calls(lambda: ours(x)) - calls(lambda: theirs(x))

    with torch.set_grad_enabled(grad), stubbed_kernels(lambda _: None):
        if not statistics:
            return extra()
        with slamkern.record_stats(model, list("abcd")) as recorder, recorder.tokens(ids):
            return extra()


@pytest.mark.parametrize(("mode", "statistics"), MOST)
def test_a_forward_makes_few_calls(mode, statistics):
    assert extra_calls(mode, statistics) <= MOST[mode, statistics]


def test_the_count_sees_what_is_looked_up_anew_at_every_call(monkeypatch):
    """As if a forward asked a projection for its signature instead of for its type."""
    usual = extra_calls("training", True)
    is_plain = ffn_module.is_plain

    def slow(linear):
        return bool(inspect.signature(linear.forward)) and is_plain(linear)

    monkeypatch.setattr(ffn_module, "is_plain", slow)
    assert extra_calls("training", True) > usual + 100


def looked_up(model):
    """Functions of slamkern.kernels that a second forward with statistics calls."""
    ffn, x, ids = model.model.layers[0].mlp, torch.randn(1, 9, 32), torch.arange(9)[None] % 4
    names = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and "slamkern/kernels" in code.co_filename:
            names.add(code.co_name)

    recording = slamkern.record_stats(model, list("abcd"))
    with torch.no_grad(), stubbed_kernels(lambda _: None), recording as recorder, recorder.tokens(ids):
        ffn(x)
        sys.setprofile(note)
        try:
            ffn(x)
        finally:
            sys.setprofile(None)
    return names


def test_tiles_and_the_environment_are_looked_up_once(monkeypatch):
    model = slamkern.patch_model(tiny_model("llama").requires_grad_(False), backend="triton")
    once = {"strip", "whole_rows", "unavailable_reason", "_interpreted", "__getattr__"}
    names = looked_up(model)
    assert "swiglu_stats" in names and not names & once
    monkeypatch.setattr(launch, "strip", launch.strip.__wrapped__)
    assert looked_up(model) & once == {"strip"}
