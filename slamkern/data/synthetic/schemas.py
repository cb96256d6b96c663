"""The kinds of problem: which words each one takes, which numbers it allows, and what the answer is.

Numbers are chosen so that every quantity named in a question or a solution is an integer of at least 2: nothing is
negative, no division leaves a rest, and no language has to speak of a single thing in the plural. Most are below 100.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

PERSONS = ("anna", "tom", "maria", "peter", "lisa", "david", "sara", "omar")
OBJECTS = ("apple", "orange", "egg", "candy", "book", "pencil", "stamp", "ball", "cup", "rose")

Numbers = dict[str, int]


@dataclass(frozen=True)
class Schema:
    """``slots`` names the words (P, Q distinct persons; X, Y distinct objects); ``numbers()`` lists every allowed
    assignment: the given numbers a, b, c, d, the intermediate results s, t and the answer r."""

    name: str
    slots: str
    numbers: Callable[[], Iterator[Numbers]]


def _sum(first: range, second: range) -> Iterator[Numbers]:
    return ({"a": a, "b": b, "r": a + b} for a, b in product(first, second))


def _product(first: range, second: range, largest: int) -> Iterator[Numbers]:
    return ({"a": a, "b": b, "r": a * b} for a, b in product(first, second) if a * b <= largest)


def _quotient(largest: int) -> Iterator[Numbers]:
    return ({"a": b * r, "b": b, "r": r} for b, r in product(range(2, 21), range(2, 21)) if b * r <= largest)


def _give_away() -> Iterator[Numbers]:
    return ({"a": a, "b": b, "r": a - b} for a in range(10, 71) for b in range(2, a - 1))


def _change() -> Iterator[Numbers]:
    for a, b, c in product(range(2, 10), range(2, 10), range(20, 101, 5)):
        if a * b < c - 1:
            yield {"a": a, "b": b, "c": c, "s": a * b, "r": c - a * b}


def _two_prices() -> Iterator[Numbers]:
    for a, b, c, d in product(range(2, 8), range(2, 9), range(2, 8), range(2, 9)):
        yield {"a": a, "b": b, "c": c, "d": d, "s": a * b, "t": c * d, "r": a * b + c * d}


def _pages() -> Iterator[Numbers]:
    for b, c, r in product(range(4, 16), range(2, 7), range(5, 41)):
        yield {"a": b * c + r, "b": b, "c": c, "s": b * c, "r": r}


def _age() -> Iterator[Numbers]:
    for a, b, c in product(range(5, 31), range(2, 13), range(2, 11)):
        yield {"a": a, "b": b, "c": c, "s": a + b, "r": a + b + c}


def _savings() -> Iterator[Numbers]:
    for a, b, r in product(range(4, 13), range(3, 9), range(2, 31)):
        if a * b - r >= 5:
            yield {"a": a, "b": b, "c": a * b - r, "s": a * b, "r": r}


def _sell_rest() -> Iterator[Numbers]:
    for a, b, c in product(range(10, 31), range(2, 9), range(2, 8)):
        if (a - b) * c <= 150:
            yield {"a": a, "b": b, "c": c, "s": a - b, "r": (a - b) * c}


def _chairs() -> Iterator[Numbers]:
    for a, b, r in product(range(3, 10), range(4, 12), range(2, 31)):
        if a * b - r >= 5:
            yield {"a": a, "b": b, "c": a * b - r, "s": a * b, "r": r}


def _compare() -> Iterator[Numbers]:
    for a, b in product(range(4, 44), range(2, 31)):
        yield {"a": a, "b": b, "s": a + b, "r": a + a + b}


SCHEMAS: tuple[Schema, ...] = (
    Schema("buy_more", "PX", lambda: _sum(range(5, 61), range(2, 40))),
    Schema("give_away", "PQX", _give_away),
    Schema("total_price", "PX", lambda: _product(range(2, 21), range(2, 13), 150)),
    Schema("change", "PX", _change),
    Schema("two_prices", "PXY", _two_prices),
    Schema("pages", "P", _pages),
    Schema("speed", "P", lambda: _product(range(5, 31), range(2, 11), 150)),
    Schema("boxes", "PX", lambda: _quotient(120)),
    Schema("share", "PX", lambda: _quotient(120)),
    Schema("age", "PQ", _age),
    Schema("savings", "P", _savings),
    Schema("sell_rest", "PX", _sell_rest),
    Schema("chairs", "P", _chairs),
    Schema("compare", "PQX", _compare),
)
