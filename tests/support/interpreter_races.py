"""Races between the programs of a launch, seen in Triton's interpreter, which runs them one after another.

Every load, store and atomic operation is noted with the program that made it. Two programs race where they touch one
address, one of them stores to it, and nothing puts them in order. What does is an atomic operation that releases in one
program and one on the same address that acquires, later, in the other (C++'s happens-before, by vector clocks). As on
a GPU, a release speaks for the stores of all threads only after a barrier. Programs that depend on one another in any
other way are found by running them in another order, which must give the same bits.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
from triton._C.libtriton import ir
from triton.runtime.interpreter import interpreter_builder

Builder: Any = type(interpreter_builder)
Clock = dict[tuple[str, int], int]  # ("plain" or "atomic", program) -> how many of its spans or atomics are known
LOAD, STORE, ATOMIC = "load", "store", "atomic"
_RELEASES = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
_ACQUIRES = (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)


@dataclass
class _Span:
    """What one program touched between two points at which what it knows or what is known of it changes."""

    program: int
    kind: str
    number: int  # of the program's spans, or of its atomics
    known: Clock
    addresses: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def before(self, other: "_Span") -> bool:
        return other.known.get((self.kind, self.program), -1) >= self.number


class _Launch:
    def __init__(self) -> None:
        self.spans: list[_Span] = []
        self._now: dict[int, _Span] = {}
        self._published: dict[int, int] = {}  # the last span of a program that a barrier ended
        self._atomics: dict[int, int] = defaultdict(int)
        self._released: dict[int, Clock] = defaultdict(dict)  # by the address of an atomic

    def _next(self, program: int, known: Clock) -> _Span:
        number = self._now[program].number + 1 if program in self._now else 0
        self._now[program] = _Span(program, "plain", number, known)
        self.spans.append(self._now[program])
        return self._now[program]

    def touch(self, program: int, access: str, addresses: np.ndarray) -> None:
        span = self._now.get(program) or self._next(program, {})
        span.addresses[access].append(addresses)

    def barrier(self, program: int) -> None:
        span = self._now.get(program) or self._next(program, {})
        self._published[program] = span.number
        self._next(program, span.known)

    def atomic(self, program: int, addresses: np.ndarray, semantics: Any) -> None:
        known = dict((self._now.get(program) or self._next(program, {})).known)
        if semantics in _ACQUIRES:
            for address in addresses.tolist():
                _join(known, self._released[address])
        number = self._atomics[program]
        self._atomics[program] += 1
        self.spans.append(_Span(program, "atomic", number, known, {ATOMIC: [addresses]}))
        if semantics in _RELEASES:
            own = {("plain", program): self._published.get(program, -1), ("atomic", program): number}
            for address in addresses.tolist():
                _join(self._released[address], known | own)
        self._next(program, known)

    def races(self) -> dict[str, int]:
        """How many addresses are raced for, by the two kinds of access."""
        touched: dict[int, set[tuple[int, str]]] = defaultdict(set)
        written = [a for span in self.spans for kind in (STORE, ATOMIC) for a in span.addresses.get(kind, ())]
        contested = np.unique(np.concatenate([np.empty(0, np.uint64), *written]))
        for index, span in enumerate(self.spans):
            for access, addresses in span.addresses.items():
                here = np.intersect1d(np.concatenate(addresses), contested)
                for address in here.tolist():
                    touched[address].add((index, access))
        found: dict[str, int] = defaultdict(int)
        verdicts: dict[frozenset[tuple[int, str]], set[str]] = {}  # many addresses are touched by the same
        for accesses in touched.values():
            key = frozenset(accesses)
            if key not in verdicts:
                verdicts[key] = {kinds for pair in combinations(key, 2) if (kinds := self._race(*pair))}
            for kinds in verdicts[key]:
                found[kinds] += 1
        return dict(found)

    def _race(self, one: tuple[int, str], other: tuple[int, str]) -> str:
        (first, kind), (second, another) = sorted((one, other))
        a, b, kinds = self.spans[first], self.spans[second], {kind, another}
        if a.program == b.program or kinds in ({LOAD}, {ATOMIC}) or a.before(b) or b.before(a):
            return ""
        return "/".join(sorted((kind, another)))


def _join(clock: Clock, other: Clock) -> None:
    for key, value in other.items():
        clock[key] = max(clock.get(key, -1), value)


class Watch:
    """The launches of a block: what their programs touched."""

    def __init__(self) -> None:
        self._launches: list[_Launch] = []

    @property
    def launches(self) -> int:
        return len(self._launches)

    def races(self) -> dict[str, int]:
        """Addresses that programs of one launch race for, by kind ("load/store", "store/store", ...)."""
        total: dict[str, int] = defaultdict(int)
        for launch in self._launches:
            for kinds, count in launch.races().items():
                total[kinds] += count
        return dict(total)


@contextmanager
def watched_programs() -> Iterator[Watch]:
    """Watch every kernel that is interpreted in this block."""
    watch = Watch()
    launches = watch._launches
    originals = {name: getattr(Builder, name) for name in _WATCHED}

    def program(builder: Any) -> int:
        x, y, z = builder.grid_idx
        nx, ny, _ = builder.grid_dim
        return int((z * ny + y) * nx + x)

    def chosen(pointers: Any, mask: Any) -> np.ndarray:
        return pointers.data[mask.data.astype(bool)].ravel().astype(np.uint64)

    def set_grid_dim(self: Any, *size: int) -> None:
        launches.append(_Launch())
        originals["set_grid_dim"](self, *size)

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].touch(program(self), LOAD, chosen(pointers, mask))
        return originals["create_masked_load"](self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].touch(program(self), STORE, chosen(pointers, mask))
        return originals["create_masked_store"](self, pointers, value, mask, *rest)

    def create_atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        launches[-1].atomic(program(self), chosen(pointers, mask), sem)
        return originals["create_atomic_rmw"](self, op, pointers, value, mask, sem, scope)

    def create_atomic_cas(self: Any, pointers: Any, expected: Any, value: Any, sem: Any, scope: Any) -> Any:
        launches[-1].atomic(program(self), pointers.data.ravel().astype(np.uint64), sem)
        return originals["create_atomic_cas"](self, pointers, expected, value, sem, scope)

    def create_barrier(self: Any) -> None:
        launches[-1].barrier(program(self))
        originals["create_barrier"](self)

    watching = {name: value for name, value in locals().items() if name in _WATCHED}
    with mock.patch.multiple(Builder, **watching):
        yield watch


_WATCHED = (
    "set_grid_dim", "create_masked_load", "create_masked_store",
    "create_atomic_rmw", "create_atomic_cas", "create_barrier",
)  # fmt: skip


@contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """The programs along the first dimension of every grid run in a random order."""
    original = Builder.set_grid_idx
    orders: dict[int, list[int]] = {}

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        size = self.grid_dim[0]
        order = orders.setdefault(size, np.random.default_rng(seed).permutation(size).tolist())
        original(self, order[x], y, z)

    with mock.patch.object(Builder, "set_grid_idx", set_grid_idx):
        yield
