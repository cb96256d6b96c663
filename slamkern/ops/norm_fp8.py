"""The registered ops beside the FFN's (``torch.ops.slamkern``): RMS norms, quantization to FP8.

As in glu.py an implementation only picks the backend and calls it. csrc has none of these: native.py's are plain torch.
"""

import torch
from torch import Tensor

from slamkern.ops.dispatch import backend_for, eager_op, readable

_library = torch.library.Library("slamkern", "FRAGMENT")
_library.define("rms_norm(Tensor x, Tensor weight, float eps, str style, str backend) -> (Tensor y, Tensor rstd)")
_library.define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd, str style, str backend) -> Tensor"
)
_library.define("quantize_rows(Tensor x, Tensor? multiplier, str backend) -> (Tensor values, Tensor scale)")


def _rms_norm(x: Tensor, weight: Tensor, eps: float, style: str, backend: str) -> tuple[Tensor, Tensor]:
    return backend_for(backend, x.device.type, x.dtype).rms_norm(readable(x), weight, eps, style)


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, style: str, backend: str) -> Tensor:
    module = backend_for(backend, x.device.type, x.dtype)
    return module.rms_norm_backward(readable(grad), readable(x), weight, rstd, style)


def _quantize_rows(x: Tensor, multiplier: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return backend_for(backend, x.device.type, x.dtype).quantize_rows(readable(x), multiplier)


for _name, _implementation in (
    ("rms_norm", _rms_norm),
    ("rms_norm_backward", _rms_norm_backward),
    ("quantize_rows", _quantize_rows),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")

# What the autograd Functions of the package call.
eager_rms_norm = eager_op("rms_norm", _rms_norm)
eager_rms_norm_backward = eager_op("rms_norm_backward", _rms_norm_backward)
eager_quantize_rows = eager_op("quantize_rows", _quantize_rows)


@torch.library.register_fake("slamkern::rms_norm", lib=_library)
def _(x, weight, eps, style, backend):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), torch.empty(x.shape[0], dtype=wide, device=x.device)


@torch.library.register_fake("slamkern::rms_norm_backward", lib=_library)
def _(grad, x, weight, rstd, style, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.register_fake("slamkern::quantize_rows", lib=_library)
def _(x, multiplier, backend):  # type: ignore[no-untyped-def]
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return values, torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
