"""Memory for large results on a CPU that is used again, as torch's own allocator does on CUDA.

glibc gives large blocks back to the kernel, and a fresh one costs as much as a memory-bound op: the kernel clears every
page. Here a block waits for the next result once the last tensor on it is gone. At most ``KEPT`` blocks wait.
"""

import ctypes
import functools
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

# A probe in batches of 512 tokens: results of 3 MiB from malloc were 200,000 page faults, 7 % of its time.
LARGE_BYTES = 1 << 20
KEPT = 5  # what one backward frees (grad_gate, grad_up, hidden and the gradient of hidden), and a workspace
_HUGE_PAGE = 2 << 20


class Pages:
    """Blocks of private memory, handed out as tensors and taken back when those are freed."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._waiting: list[mmap.mmap] = []  # the longest waiting first

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialized contiguous CPU tensor; its storage cannot be resized."""
        bytes_needed = prod(shape) * dtype.itemsize
        block = self._fitting(bytes_needed) or self._fresh(bytes_needed)
        view = (ctypes.c_char * bytes_needed).from_buffer(block)
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.frombuffer(view, dtype=dtype).view(shape)

    def _fitting(self, bytes_needed: int) -> mmap.mmap | None:
        """The smallest block that waits and fits without wasting half of it."""
        for block in sorted(self._waiting, key=len):
            if bytes_needed <= len(block) <= 2 * bytes_needed:
                with suppress(ValueError):  # another thread took it
                    self._waiting.remove(block)
                    return block
        return None

    @staticmethod
    def _fresh(bytes_needed: int) -> mmap.mmap:
        size = (bytes_needed + _HUGE_PAGE - 1) // _HUGE_PAGE * _HUGE_PAGE
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _give_back(self, block: mmap.mmap) -> None:
        # Runs wherever a tensor dies, in the middle of the above too: single list operations, no lock to wait for.
        self._waiting.append(block)
        while len(self._waiting) > self._kept:
            with suppress(IndexError):
                self._waiting.pop(0)


@functools.cache
def _pages() -> Pages:
    return Pages()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized contiguous tensor, on a CPU in memory that has been used before where it is large."""
    if device.type != "cpu" or prod(shape) * dtype.itemsize < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    return _pages().empty(shape, dtype)


def empty_like(x: Tensor) -> Tensor:
    """:func:`empty` with the shape, dtype and device of ``x``."""
    return empty(x.shape, x.dtype, x.device)
