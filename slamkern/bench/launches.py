"""Which Triton kernels a piece of work launched on a GPU: the proof that a variant ran what its name says."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch


def triton_kernels(package: str) -> frozenset[str]:
    """Names of the Triton kernels in the modules of ``package`` that are loaded; none without Triton."""
    try:
        from triton.runtime.jit import KernelInterface
    except ImportError:
        return frozenset()
    names = set()
    for module in _modules(package):
        for found in vars(module).values():
            if isinstance(found, KernelInterface):
                while isinstance(found, KernelInterface):  # an autotuner is around the kernel
                    found = found.fn
                names.add(found.__name__)
    return frozenset(names)


def _modules(package: str) -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if f"{name}.".startswith(f"{package}.")]


def launches_of(package: str, events: Iterable[str]) -> dict[str, int] | None:
    """How often each kernel of ``package`` is among the names of launched kernels; None where no launch was recorded.

    Kernels of a compiled library are recognized by their namespace, the package's first word.
    """
    names, space = triton_kernels(package), f"{package.partition('.')[0]}::"
    events = list(events)
    return dict(Counter(name for name in events if name in names or space in name)) if events else None


@contextmanager
def kernel_events(device: torch.device) -> Iterator[list[str]]:
    """Yields a list that afterwards holds the name of every kernel launched in the block; empty on a CPU."""
    names: list[str] = []
    if device.type != "cuda":
        yield names
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        yield names
        torch.cuda.synchronize(device)
    cuda = torch.autograd.DeviceType.CUDA
    names += [event.name for event in profiler.events() if event.device_type == cuda]
