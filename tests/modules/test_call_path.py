"""From a fused FFN's forward to a kernel launch a reader passes at most five files, and these are they."""

import traceback
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model

pytest.importorskip("triton")
import slamkern
from slamkern.kernels import glu, glu_stats

PACKAGE = Path(slamkern.__file__).parent
# The module, its autograd Function, the op, past torch's dispatcher to its backend, the kernel with its launcher.
FORWARD = ["modules/ffn.py", "modules/ffn_autograd.py", "ops/glu.py", "ops/dispatch.py", "kernels/glu.py"]
BACKWARD = ["modules/ffn_autograd.py", "ops/dispatch.py", "ops/glu.py", "kernels/glu.py"]  # autograd is the caller
INFERENCE = ["modules/ffn.py", "ops/glu.py", "ops/dispatch.py", "kernels/glu.py"]
MOST = 5


class Stub:
    """A kernel that notes which files of the package are on the stack where it is launched."""

    def __init__(self, launches):
        self.launches = launches

    def __getitem__(self, grid):
        files = (Path(frame.filename) for frame in traceback.extract_stack()[:-1])
        inside = [str(file.relative_to(PACKAGE)) for file in files if file.is_relative_to(PACKAGE)]
        self.launches.append(list(dict.fromkeys(inside)))
        return lambda *arguments, **options: None


@pytest.fixture
def launches(monkeypatch):
    noted = []
    for module in (glu, glu_stats):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Stub(noted))
    return noted


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
