"""Past the dispatcher only where nobody would see the op: whoever traces, intercepts or profiles sees every one."""

import pytest
import torch
from support.tiny_causal_lm import tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from slamkern import patch_model
from slamkern.ops import glu
from slamkern.ops.dispatch import eager_op

GATE, UP = torch.randn(2, 3, 8)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls():
    """What ran past the dispatcher, and the op that notes it."""
    noted = []

    def implementation(*args):
        noted.append(args)
        return glu._swiglu(*args)

    return noted, eager_op("swiglu", implementation)


def test_plain_tensors_without_autograd_skip_the_dispatcher(calls):
    noted, op = calls
    with torch.no_grad():
        hidden = op(GATE, UP, "silu", "auto")
    assert len(noted) == 1
    assert hidden.equal(torch.ops.slamkern.swiglu(GATE, UP, "silu", "auto"))


def test_autograd_sees_the_op(calls):
    noted, op = calls
    gate = GATE.clone().requires_grad_()
    op(gate, UP, "silu", "auto").sum().backward()
    assert noted == []
    assert gate.grad is not None and gate.grad.abs().sum() > 0


@torch.no_grad()
def test_modes_subclasses_and_the_compiler_see_the_op(calls):
    noted, op = calls
    with Seen() as seen:
        op(GATE, UP, "silu", "auto")
    assert "slamkern.swiglu.default" in seen.names
    with FakeTensorMode() as mode:
        assert op(mode.from_tensor(GATE), mode.from_tensor(UP), "silu", "auto").shape == GATE.shape
    op(nn.Parameter(GATE), UP, "silu", "auto")
    torch.compile(lambda gate, up: op(gate, up, "silu", "auto"), fullgraph=True, backend="eager")(GATE, UP)
    assert noted == []


def test_a_profile_of_a_patched_model_lists_the_ops():
    model = patch_model(tiny_model())
    with torch.no_grad(), profile() as seen:
        model(torch.arange(8)[None])
    names = {event.key for event in seen.key_averages()}
    assert {"slamkern::swiglu", "slamkern::rms_norm"} <= names
