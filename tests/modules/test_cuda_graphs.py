"""Graphs of a function: nothing runs twice, shapes are told apart, and what waits for the device is named."""

from dataclasses import dataclass, replace

import pytest
import torch
from support.graphs import Recorded

from slamkern.errors import SlamkernError
from slamkern.modules.cuda_graphs import CudaCapture, Graphs, NoSync, check_capturable


@dataclass(frozen=True)
class Batch:
    values: torch.Tensor
    power: int

    def to(self, device):
        return replace(self, values=self.values.to(device))


BATCHES = [
    Batch(torch.arange(n).float() + k, p) for k, (n, p) in enumerate([(3, 1), (3, 1), (5, 1), (3, 2), (3, 1), (5, 1)])
]


def test_each_batch_runs_once_and_each_shape_met_twice_is_captured_once():
    total, prepared = torch.zeros(()), []

    def run(batch):
        total.add_((batch.values**batch.power).sum())

    capture = Recorded(torch.device("cpu"))
    graphs = Graphs(run, torch.device("cpu"), before_capture=lambda: prepared.append(1), capture=capture)
    given = [batch.values.clone() for batch in BATCHES]
    for batch in BATCHES:
        graphs(batch)
    assert total == sum(float((batch.values**batch.power).sum()) for batch in BATCHES)
    assert (capture.captured, capture.replayed, len(prepared)) == (2, 3, 2)
    assert all(torch.equal(batch.values, before) for batch, before in zip(BATCHES, given, strict=True))


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.__setitem__(x > 0, torch.empty(0, device=x.device)), "index_put_"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
        (lambda x: x.tolist(), "_to_copy"),
        (lambda x: x.cpu(), "_to_copy"),
        (torch.ops.aten.lift_fresh, "lift_fresh"),  # torch.tensor(..., device=...)
        (lambda x: x.copy_(torch.zeros(3)), "copy_"),
    ],
)
def test_what_waits_for_the_device_is_named(op, name):
    with NoSync(), pytest.raises(SlamkernError, match=name):
        op(torch.zeros(3, device="meta"))
    with NoSync():
        op(torch.zeros(3))  # a CPU may be looked at
        x = torch.zeros(3, device="meta")
        x[x > 0] = 1.0
        x.repeat_interleave(2), x.repeat_interleave(x.long(), output_size=3)
        x[torch.zeros(2, dtype=torch.int64, device="meta")] += x.to(torch.float16)[:2]


def test_a_wait_in_a_backward_is_named_too():
    x = torch.zeros(3, device="meta", requires_grad=True)
    x.register_hook(lambda grad: grad.sum().item())
    with NoSync(), pytest.raises(SlamkernError, match="_local_scalar_dense"):
        (2 * x).sum().backward()


def test_only_a_model_on_one_gpu_is_captured():
    check_capturable([torch.device("cuda", 0)] * 2)
    for devices in (["cpu"], ["cuda:0", "cuda:1"], ["cuda:0", "cpu"]):
        with pytest.raises(SlamkernError, match="one NVIDIA GPU"):
            check_capturable(map(torch.device, devices))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_on_a_gpu_and_a_capture_that_cannot_be():
    device = torch.device("cuda", 0)
    total = torch.zeros((), device=device)
    graphs = Graphs(lambda batch: total.add_((batch.values**batch.power).sum()), device)
    for batch in BATCHES:
        graphs(batch)
    assert float(total) == sum(float((batch.values**batch.power).sum()) for batch in BATCHES)
    with pytest.raises(SlamkernError, match="cannot be captured"):
        CudaCapture(device)(lambda: total.item())
