"""What a call launches and allocates, counted: kernels are stubs that note their launch and compute nothing."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

from slamkern import kernels

# Ops that read a tensor on the host, or whose result has a size that depends on values: the device is waited for.
WAITS = ("aten.nonzero", "aten._local_scalar_dense", "aten.is_nonzero", "aten.masked_select", "aten.unique")


class Counts(NamedTuple):
    """Kernels launched, by name; allocations of tensor memory; their bytes."""

    launches: list[str]
    allocations: int
    bytes: int


class _Stub:
    def __init__(self, note: Callable[[], object]) -> None:
        self._note = note

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        self._note()
        return lambda *arguments, **options: None


@contextmanager
def stubbed_kernels(note: Callable[[str], object]) -> Iterator[None]:
    """Every kernel of slamkern.kernels is one that calls ``note`` with its name where it is launched."""
    from triton.runtime.jit import KernelInterface

    with ExitStack() as stack:
        for file in sorted(set(kernels._FILES.values())):
            module = importlib.import_module(f"slamkern.kernels.{file}")
            for name, kernel in list(vars(module).items()):
                if isinstance(kernel, KernelInterface) and name.endswith("_kernel"):
                    stub = _Stub(lambda name=name: note(name))  # type: ignore[misc]
                    stack.enter_context(mock.patch.object(module, name, stub))
        yield


def counted(call: Callable[[], Any]) -> Counts:
    """What ``call`` launches and allocates."""
    launches: list[str] = []
    with stubbed_kernels(launches.append), torch.profiler.profile(profile_memory=True) as profile:
        call()
    record: Any = profile.profiler
    sizes = [event.nbytes() for event in record.kineto_results.events() if event.name() == "[memory]"]
    made = [size for size in sizes if size > 0]
    return Counts(launches, len(made), sum(made))
