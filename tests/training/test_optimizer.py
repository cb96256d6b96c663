import math

import pytest
import torch
from torch import nn

from slamkern.errors import SlamkernError
from slamkern.training.optimizer import MasterAdamW, learning_rate


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"up": (6, 4), "norm": (4,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return {"up": torch.randn(6, 4, generator=generator), "norm": torch.randn(4, generator=generator)}


def take_steps(optimizer, first, last):
    for step in range(first, last):
        for name, gradient in gradients(step).items():
            optimizer.parameters[name].grad = gradient.to(optimizer.parameters[name].dtype)
        optimizer.collect_gradients()
        optimizer.step(0.01)


def test_float32_steps_are_those_of_torch_adamw():
    ours, theirs = parameters(), parameters()
    groups = [{"params": [theirs["up"]], "weight_decay": 0.1}, {"params": [theirs["norm"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01)
    take_steps(MasterAdamW(ours.items(), weight_decay=0.1), 0, 5)
    for step in range(5):
        for name, gradient in gradients(step).items():
            theirs[name].grad = gradient
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_half_precision_follows_a_float32_master():
    half = parameters(torch.bfloat16)
    optimizer = MasterAdamW(half.items())
    before = half["up"].detach().clone()
    for _ in range(4):  # each step is below half a bfloat16 ulp of most values, so only a master can add them up
        half["up"].grad, half["norm"].grad = torch.ones_like(half["up"]), torch.ones_like(half["norm"])
        optimizer.collect_gradients()
        optimizer.step(5e-4)
    master = optimizer.masters["up"]
    assert master.dtype == torch.float32 and torch.equal(half["up"], master.bfloat16())
    torch.testing.assert_close(master, before.float() - 4 * 5e-4, rtol=0, atol=1e-5)
    assert not torch.equal(half["up"], before)


def test_micro_batch_gradients_add_up_in_float32():
    half = {"w": nn.Parameter(torch.zeros(1, 1, dtype=torch.bfloat16))}
    optimizer = MasterAdamW(half.items())
    for _ in range(300):  # a bfloat16 sum of ones stops at 256
        half["w"].grad = torch.ones_like(half["w"])
        optimizer.collect_gradients()
        assert half["w"].grad is None
    assert optimizer.masters["w"].grad.item() == 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_restores_bitwise(dtype):
    unbroken = MasterAdamW(parameters(dtype).items(), weight_decay=0.1)
    take_steps(unbroken, 0, 6)
    first = MasterAdamW(parameters(dtype).items(), weight_decay=0.1)
    take_steps(first, 0, 3)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = MasterAdamW([(n, nn.Parameter(p.detach().clone())) for n, p in first.parameters.items()], weight_decay=0.1)
    second.load_state_dict(state)
    take_steps(second, 3, 6)
    for name in unbroken.parameters:
        assert torch.equal(unbroken.parameters[name], second.parameters[name])
    assert all(torch.equal(a, second.state_dict()[name]) for name, a in unbroken.state_dict().items())


def test_state_of_other_tensors_is_refused():
    optimizer = MasterAdamW(parameters().items())
    take_steps(optimizer, 0, 1)
    state = optimizer.state_dict()
    del state["exp_avg/norm"]
    with pytest.raises(SlamkernError, match="exp_avg/norm"):
        optimizer.load_state_dict(state)


def test_clip_measures_and_scales_the_global_norm():
    optimizer = MasterAdamW(parameters().items())
    for master in optimizer.masters.values():
        master.grad = torch.ones_like(master)
    norm = math.sqrt(28)
    assert float(optimizer.clip(0)) == pytest.approx(norm)
    assert optimizer.masters["norm"].grad[0] == 1
    assert float(optimizer.clip(0.5)) == pytest.approx(norm)
    assert float(optimizer.clip(0)) == pytest.approx(0.5, rel=1e-4)


def test_schedule():
    rates = [learning_rate(step, 10, 1.0, warmup_steps=2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5) and rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)
    assert learning_rate(10, 10, 1.0, warmup_steps=2) == pytest.approx(0)
    assert learning_rate(7, 10, 0.3, lr_scheduler_type="constant") == 0.3


def test_nothing_to_train_and_integer_weights_are_refused():
    with pytest.raises(SlamkernError, match="apply_selection"):
        MasterAdamW([])
    with pytest.raises(SlamkernError, match="float8"):
        MasterAdamW([("w", nn.Parameter(torch.zeros(2).to(torch.float8_e4m3fn), requires_grad=False))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_offloaded_steps_are_bitwise_the_same(dtype):
    here, there = parameters(dtype), parameters(dtype)
    optimizers = [
        MasterAdamW(here.items(), weight_decay=0.1),
        MasterAdamW(there.items(), weight_decay=0.1, offload=True),
    ]
    for step in range(6):
        for optimizer in optimizers:
            for name, gradient in gradients(step).items():
                parameter = optimizer.parameters[name]
                parameter.grad = gradient.to(dtype) if parameter.grad is None else parameter.grad + gradient.to(dtype)
            optimizer.collect_gradients()
            if step % 2:  # gradients of two micro-batches are added up
                optimizer.clip(1.0)
                optimizer.step(0.01)
    for name in here:
        assert torch.equal(here[name], there[name])
        assert all(master is not there[name] for master in optimizers[1].masters.values())
    again = MasterAdamW(parameters(dtype).items(), offload=True)
    again.load_state_dict(optimizers[1].state_dict())
    assert all(torch.equal(again.masters[name], optimizers[1].masters[name]) for name in here)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_offloaded_optimizer_leaves_nothing_on_the_gpu():
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    here = {name: nn.Parameter(torch.randn(512, 512, device=device, dtype=torch.bfloat16)) for name in ("up", "down")}
    optimizer = MasterAdamW(here.items(), offload=True)
    start = {name: parameter.detach().clone() for name, parameter in here.items()}
    for parameter in here.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.collect_gradients()
    optimizer.step(0.1)
    assert optimizer._buffer.is_pinned() and not any(master.is_cuda for master in optimizer.masters.values())
    for name, parameter in here.items():
        torch.testing.assert_close(parameter.float(), start[name].float() - 0.1, atol=0.02, rtol=0.01)
    del start
    assert torch.cuda.memory_allocated(device) - before == sum(parameter.nbytes for parameter in here.values())
