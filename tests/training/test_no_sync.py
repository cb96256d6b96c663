"""A micro-batch never waits for the device: no op of forward, backward or optimizer reads a tensor on the host."""

import pytest
import torch
from support.tiny_models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import slamkern
from slamkern.data.packing import Example, collate
from slamkern.modules.packed_attention import packed_attention
from slamkern.ops.dispatch import backends
from slamkern.selection.layers import LayerSelection
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.optimizer import MasterAdamW

WAITS = ("aten.nonzero", "aten._local_scalar_dense", "aten.is_nonzero", "aten.masked_select", "aten.unique")


class Refusing(TorchDispatchMode):
    """Raises where an op would wait for the device, or has a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(WAITS), func
        return func(*args, **(kwargs or {}))


def batch():
    examples = [Example(tuple(range(3, 3 + n)), (-100,) * 4 + tuple(range(7, 3 + n))) for n in (9, 12, 7)]
    return collate(examples)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_forward_backward_and_optimizer(backend):
    if reason := backends("cpu")[backend]:
        pytest.skip(reason)
    model = slamkern.patch_model(tiny_model("llama"), backend=backend)
    slamkern.apply_selection(model, LayerSelection(layers=(1, 2)))
    head, packed = read_head(model), batch()
    optimizer = MasterAdamW((name, p) for name, p in model.named_parameters() if p.requires_grad)
    with packed_attention(model), Refusing():
        (packed_loss(model, packed, head=head) / 10).backward()
        optimizer.collect_gradients()
        optimizer.step(1e-3)


def test_the_check_can_fail():
    with Refusing(), pytest.raises(AssertionError, match="nonzero"):
        torch.arange(4).nonzero()
    with Refusing(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()
