"""The Triton backend: the ops of ``slamkern.ops.reference`` with the same names, signatures and results.

One op a file: kernels, then the launcher. Tensors are (tokens, neurons) in bfloat16, float16 or float32 with a
contiguous last dimension and any row stride. Launchers never wait for the device and allocate shapes that depend on
shapes only, so every one of them can be captured in a CUDA graph.

Importing this package does not import triton: the kernels load when one of them is first asked for.
"""

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from slamkern.kernels.fp8 import quantize_rows
    from slamkern.kernels.glu import swiglu, swiglu_backward
    from slamkern.kernels.glu_stats import swiglu_stats
    from slamkern.kernels.rmsnorm import rms_norm, rms_norm_backward
    from slamkern.kernels.row_plan import plan_rows

__all__ = [
    "ACTIVATIONS",
    "NORM_STYLES",
    "OBSERVABLES",
    "Activation",
    "NormStyle",
    "Observable",
    "plan_rows",
    "quantize_rows",
    "rms_norm",
    "rms_norm_backward",
    "swiglu",
    "swiglu_backward",
    "swiglu_stats",
    "unavailable_reason",
]

# In the order in which csrc numbers those that it has.
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
Observable = Literal["gate", "hidden"]
NormStyle = Literal["llama", "olmo2", "gemma"]
ACTIVATIONS, OBSERVABLES, NORM_STYLES = map(get_args, (Activation, Observable, NormStyle))

_FILES = {
    "plan_rows": "row_plan",
    "quantize_rows": "fp8",
    "rms_norm": "rmsnorm",
    "rms_norm_backward": "rmsnorm",
    "swiglu": "glu",
    "swiglu_backward": "glu",
    "swiglu_stats": "glu_stats",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    launcher = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = launcher  # found in the module from now on: this function costs 1.3 us
    return launcher


@functools.cache
def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def unavailable_reason(device: str | torch.device) -> str | None:
    """None where the kernels run on ``device``, else the reason why they do not, in one clause.

    CPU tensors need Triton's interpreter (``TRITON_INTERPRET=1``), which is for tests: it is thousands of times slower.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    kind = torch.device(device).type
    if kind == "cpu":
        return None if _interpreted() else "Triton kernels need a CUDA device (or TRITON_INTERPRET=1, for tests)"
    if kind != "cuda":
        return f"Triton kernels are compiled for CUDA devices, not {kind}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than sm_80 (Ampere), the oldest that the kernels are compiled and checked for"
    return None
