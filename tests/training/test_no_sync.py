"""A micro-batch never waits for the device: no op of forward, backward or optimizer reads a tensor on the host."""

import pytest
from support.tiny_models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import slamkern
from benchmarks.launch_counts import WAITS
from slamkern.data.packing import Example, collate
from slamkern.modules.packed_attention import packed_attention
from slamkern.ops.dispatch import backends
from slamkern.selection.layers import LayerSelection
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.optimizer import MasterAdamW


class Refusing(TorchDispatchMode):
    """Raises where an op would wait for the device, or has a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(WAITS), func
        return func(*args, **(kwargs or {}))


def batch():
    examples = [Example(tuple(range(3, 3 + n)), (-100,) * 4 + tuple(range(7, 3 + n))) for n in (9, 12, 7)]
    return collate(examples)


def micro_batch(backend="reference", plant=lambda model: None):
    """Forward, backward and optimizer of one micro-batch, none of which may wait."""
    model = slamkern.patch_model(tiny_model("llama"), backend=backend)
    slamkern.apply_selection(model, LayerSelection(layers=(1, 2)))
    head, packed = read_head(model), batch()
    optimizer = MasterAdamW((name, p) for name, p in model.named_parameters() if p.requires_grad)
    with packed_attention(model):
        plant(model)
        with Refusing():
            (packed_loss(model, packed, head=head) / 10).backward()
            optimizer.collect_gradients()
            optimizer.clip(1.0)
            optimizer.step(1e-3)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_forward_backward_and_optimizer(backend):
    if reason := backends("cpu")[backend]:
        pytest.skip(reason)
    micro_batch(backend)


# Waits as people write them, in the forward of a norm, in the backward of a layer, and at a gradient that is ready.
FAULTS = {
    "a loss that is looked at": lambda model: model.model.norm.register_forward_hook(
        lambda module, args, out: out * float(out.abs().max() < 1e9)
    ),
    "rows that are searched": lambda model: model.model.norm.register_forward_hook(
        lambda module, args, out: out.index_add(1, out[0, :, 0].isnan().nonzero()[:, 0], out[:, :0])
    ),
    "a gradient that is checked": lambda model: model.model.layers[2].register_full_backward_hook(
        lambda module, grads, outputs: None if grads[0].isfinite().all() else grads
    ),
    "a norm that is compared": lambda model: [
        parameter.register_hook(lambda grad: grad if grad.norm() < 1e9 else grad * 0)
        for parameter in model.parameters()
        if parameter.requires_grad
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_wait_is_found(fault):
    with pytest.raises(AssertionError, match=r"aten\.(nonzero|_local_scalar_dense|is_nonzero)"):
        micro_batch(plant=FAULTS[fault])
