"""The registered op of rotary position embedding, ``torch.ops.slamkern.rotary``; the others are in ops.py."""

import torch
from torch import Tensor

from slamkern import native, reference
from slamkern.backends import backend_for
from slamkern.direct import eager_op

_library = torch.library.Library("slamkern", "FRAGMENT")
_library.define(
    "rotary(Tensor q, Tensor k, Tensor cos, Tensor sin, bool inverse, ScalarType dtype, str backend)"
    " -> (Tensor q, Tensor k)"
)


def _rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    module = backend_for(backend, q.device.type, torch.promote_types(q.dtype, cos.dtype))
    if module is native:  # csrc does not rotate: where it is the backend, torch does
        module = reference
    return module.rotary(_rows(q), _rows(k), cos.contiguous(), sin.contiguous(), inverse, dtype)


def _rows(x: Tensor) -> Tensor:
    # Gradients of sums arrive with stride 0; kernels read heads whose elements are contiguous.
    return x if x.stride(-1) == 1 else x.contiguous()


_library.impl("rotary", _rotary, "CompositeExplicitAutograd")
eager_rotary = eager_op("rotary", _rotary)


@torch.library.register_fake("slamkern::rotary", lib=_library)
def _(q, k, cos, sin, inverse, dtype, backend):  # type: ignore[no-untyped-def]
    shapes = [(x.shape[0], x.shape[2], x.shape[1], x.shape[3]) for x in (q, k)]
    q_out, k_out = (torch.empty(shape, dtype=dtype, device=q.device).transpose(1, 2) for shape in shapes)
    return q_out, k_out
