"""Sequences whose items are made when they are asked for, so that millions of them need not be in memory."""

from collections.abc import Sequence
from itertools import starmap
from operator import eq
from typing import TypeVar, overload

T = TypeVar("T")


class Rows(Sequence[T]):
    """A sequence of ``row(0)`` to ``row(len - 1)``. A slice is a list; it equals any sequence of equal items."""

    def row(self, index: int) -> T:
        """The item at ``index``, which is in range."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.row(one) for one in range(*index.indices(len(self)))]
        return self.row(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(starmap(eq, zip(self, other, strict=True)))

    __hash__ = None  # type: ignore[assignment]
