"""What only a GPU can show: production shapes, offsets past 2^31, CUDA graphs, no waiting for the device.

The other kernel tests run on the GPU too when there is one (see kernel_checks.py); these are the ones the interpreter
cannot or need not run.
"""

import pytest
import torch
from support.kernel_checks import assert_as_good, assert_moments, halves, language_ids, normal

pytest.importorskip("triton")
from slamkern import kernels
from slamkern.ops import ACTIVATIONS, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BF16 = torch.bfloat16
GIB = 2**30


def needs_memory(gibibytes):
    if torch.cuda.mem_get_info()[0] < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of free GPU memory")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["grouped", "mixed"])
@pytest.mark.parametrize("neurons", [11008, 4864, 1001])
def test_statistics_at_production_shapes(neurons, layout, activation):
    gate, up = halves(normal(2049, neurons, dtype=BF16), normal(2049, neurons, dtype=BF16, seed=1))
    ids = language_ids(layout, 2049, 10)
    hidden, *stats = kernels.swiglu_stats(gate, up, ids, 10, activation, "gate")
    truth, *exact = reference.swiglu_stats(gate.double(), up.double(), ids, 10, activation, "gate")
    assert_as_good(hidden, reference.swiglu(gate, up, activation), truth)
    assert_moments(stats, exact)


def test_offsets_past_two_to_the_31st():
    needs_memory(24)
    tokens, neurons = 200_000, 11008
    gate = torch.zeros(tokens, neurons, dtype=BF16, device="cuda")
    gate[-1] = 1.0
    ids = torch.zeros(tokens, dtype=torch.int32, device="cuda")
    ids[-1] = 1
    hidden, count, mean, m2, active = kernels.swiglu_stats(gate, gate, ids, 2, "relu", "gate")
    assert hidden[-1].eq(1).all() and not hidden[:-1].any()
    assert count.tolist() == [tokens - 1, 1] and active[1].eq(1).all() and not active[0].any()
    assert mean[1].eq(1).all() and not mean[0].any() and not m2.any()
    del hidden
    grad_gate, _, _ = kernels.swiglu_backward(gate, gate, None, "relu", False)
    assert grad_gate[-1].eq(1).all() and not grad_gate[:-1].any()


def test_captured_in_a_graph_without_waiting_for_the_device():
    gate, up = normal(512, 1024, dtype=BF16), normal(512, 1024, dtype=BF16, seed=1)
    ids = language_ids("mixed", 512, 4)

    def step():
        return (
            kernels.swiglu(gate, up, "silu"),
            *kernels.swiglu_stats(gate, up, ids, 4, "silu", "gate"),
            *kernels.swiglu_backward(up, gate, up, "silu", True),
        )

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    gate.copy_(normal(512, 1024, dtype=BF16, seed=3))
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_need_not_live_on_the_current_device():
    gate = normal(16, 64).to("cuda:1")
    torch.testing.assert_close(kernels.swiglu(gate, gate, "silu"), reference.swiglu(gate, gate, "silu"))
