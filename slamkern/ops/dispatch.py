"""Which backend runs an op: Triton kernels, the compiled library, or plain torch; and the way past torch's dispatcher.

Every backend module has the same functions with the same signatures as reference.py.

Going through ``torch.ops`` costs 10 to 20 us of host time a call, more than the op itself on a few tokens. It is needed
where something traces, differentiates or intercepts what runs: then it is taken.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from slamkern import kernels
from slamkern.errors import SlamkernError
from slamkern.ops import native, reference

BACKENDS: Mapping[str, ModuleType] = MappingProxyType({"triton": kernels, "native": native, "reference": reference})
_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def backends(device_type: str = "cpu") -> dict[str, str | None]:
    """For each backend, None where it can run on ``device_type``, else the reason why not."""
    return {name: module.unavailable_reason(device_type) for name, module in BACKENDS.items()}


def resolve(backend: str, device_type: str) -> str:
    """The backend that ``backend`` means on a device: itself, or the first available one for ``"auto"``.

    Raises SlamkernError where the named backend is unknown or cannot be had, with the reason.
    """
    if backend == "auto":
        # Interpreted Triton runs on a CPU too, for tests that name it; by default nobody wants it.
        usable = (name for name, reason in backends(device_type).items() if reason is None)
        return next(name for name in usable if (name, device_type) != ("triton", "cpu"))
    if backend not in BACKENDS:
        raise SlamkernError(f"unknown backend {backend!r}; known: auto {' '.join(BACKENDS)}")
    if reason := BACKENDS[backend].unavailable_reason(device_type):
        raise SlamkernError(f"backend {backend!r} cannot run on {device_type}: {reason}; backend='auto' always works")
    return backend


@functools.cache
def backend_for(backend: str, device_type: str, dtype: torch.dtype) -> ModuleType:
    """The module that runs an op called with ``backend`` on tensors of this device and dtype."""
    # Only plain torch computes in float64: there it is the oracle and what gradcheck runs through.
    if backend == "auto" and dtype not in _HALF_AND_SINGLE:
        return reference
    name = resolve(backend, device_type)
    if name != "reference" and dtype not in _HALF_AND_SINGLE:
        raise SlamkernError(f"backend {name!r} computes float32, bfloat16 and float16, not {dtype}; use 'reference'")
    return BACKENDS[name]


def plan_rows(
    backend: str, language_ids: Tensor, num_languages: int, neurons: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What statistics of a batch need to know of its ids (tokens,) int32, once for all layers: nothing on a CPU.

    A plan is on ``device``, and holds working memory that one call at a time may use.
    """
    plan: tuple[Tensor, ...] = backend_for(backend, device.type, dtype).plan_rows(
        language_ids, num_languages, neurons, device
    )
    return plan


def readable(x: Tensor) -> Tensor:
    """``x`` as every backend reads it, in rows whose last dimension is contiguous: gradients of sums have stride 0."""
    return x if x.stride(-1) == 1 else x.contiguous()


def eager_op(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.ops.slamkern.<name>``, or its implementation itself for plain tensors of which no gradient is asked.

    To be called where autograd is not to see the op, as inside an autograd Function, or is off.
    """
    registered = getattr(torch.ops.slamkern, name)

    def run(first: Tensor, *rest: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_unobserved(first):
            return registered(first, *rest)
        return implementation(first, *rest)

    return run


def _is_unobserved(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and not is_in_torch_dispatch_mode()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch.autograd._profiler_enabled()  # a profile lists ops by name
    )
