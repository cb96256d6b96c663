"""From a fused FFN's forward to a kernel launch a reader passes at most five files, and these are they."""

import traceback
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model

import slamkern
from benchmarks.launch_counts import stubbed_kernels
from slamkern.ops.dispatch import backends

pytestmark = pytest.mark.skipif(backends("cpu")["triton"] is not None, reason=str(backends("cpu")["triton"]))
PACKAGE = Path(slamkern.__file__).parent
# The module, its autograd Function, the op, past torch's dispatcher to its backend, the kernel with its launcher.
FORWARD = ["modules/ffn.py", "modules/ffn_autograd.py", "ops/glu.py", "ops/dispatch.py", "kernels/glu.py"]
# autograd is the caller
BACKWARD = ["ops/once.py", "modules/ffn_autograd.py", "ops/dispatch.py", "ops/glu.py", "kernels/glu.py"]
INFERENCE = ["modules/ffn.py", "ops/glu.py", "ops/dispatch.py", "kernels/glu.py"]
MOST = 5


@pytest.fixture
def launches():
    """The files of the package that are on the stack where a kernel is launched, for each launch."""
    noted = []

    def note(_):
        files = (Path(frame.filename) for frame in traceback.extract_stack())
        noted.append(list(dict.fromkeys(str(f.relative_to(PACKAGE)) for f in files if f.is_relative_to(PACKAGE))))

    with stubbed_kernels(note):
        yield noted


def fused_ffn():
    model = slamkern.patch_model(tiny_model("llama"), backend="triton")
    return model, model.model.layers[0].mlp


def test_training(launches):
    _, ffn = fused_ffn()
    y = ffn(torch.randn(1, 3, 32, requires_grad=True))
    assert launches == [FORWARD]
    y.sum().backward()
    assert launches[1:] == [BACKWARD]


@torch.no_grad()
def test_inference(launches):
    _, ffn = fused_ffn()
    ffn(torch.randn(1, 3, 32))
    assert launches == [INFERENCE]


def test_statistics_are_the_same_way_and_no_launch_more(launches):
    model, ffn = fused_ffn()
    with slamkern.record_stats(model, ["en"]) as recorder, recorder.tokens(torch.zeros(1, 3, dtype=torch.int64)):
        ffn(torch.randn(1, 3, 32, requires_grad=True))
        with torch.no_grad():
            ffn(torch.randn(1, 3, 32))
    assert launches == [[*path[:-1], "kernels/glu_stats.py"] for path in (FORWARD, INFERENCE)]
    assert max(map(len, (FORWARD, BACKWARD, INFERENCE))) <= MOST
