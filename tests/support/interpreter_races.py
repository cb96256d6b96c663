"""Races between the programs of a kernel, seen in Triton's interpreter, which runs them one after another.

Two programs that store to one address race, unless it is an atomic operation; and where programs depend on one another
in any other way, another order of them gives other bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from triton.runtime.interpreter import interpreter_builder as builder


class Stores:
    """The addresses that each program stored to, in elements; launches must not share programs and addresses."""

    def __init__(self) -> None:
        self._of: dict[int, list[np.ndarray]] = {}

    def note(self, program: int, addresses: np.ndarray) -> None:
        self._of.setdefault(program, []).append(addresses)

    def shared(self) -> int:
        """How many addresses more than one program stored to."""
        each = [np.unique(np.concatenate(addresses)) for addresses in self._of.values()]
        _, programs = np.unique(np.concatenate(each), return_counts=True)
        return int((programs > 1).sum())


@contextmanager
def watched_stores() -> Iterator[Stores]:
    """Every store of the kernels that run in this block; atomic operations are none."""
    stores, original = Stores(), type(builder).create_masked_store

    def create_masked_store(self, ptrs, value, mask, *options):
        stores.note(self.grid_idx[0], ptrs.data[mask.data.astype(bool)].ravel())
        return original(self, ptrs, value, mask, *options)

    type(builder).create_masked_store = create_masked_store
    try:
        yield stores
    finally:
        type(builder).create_masked_store = original


@contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """The programs along the first dimension of every grid run in a random order."""
    original = type(builder).set_grid_idx
    orders: dict[int, list[int]] = {}

    def set_grid_idx(self, x, y, z):
        size = self.grid_dim[0]
        order = orders.setdefault(size, np.random.default_rng(seed).permutation(size).tolist())
        original(self, order[x], y, z)

    type(builder).set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        type(builder).set_grid_idx = original
