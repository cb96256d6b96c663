"""Draws parallel word problems: one set of numbers and words, told in every language.

A problem is (schema, numbers, words). Its split is a hash of schema and numbers alone, so the splits are disjoint in
the strong sense: no test problem is a training problem with another name or another object. Draws are uniform over
the schemas and then over a schema's problems, without repetition; a schema that runs out is left out.

Only `random.Random.random` is used: the one method whose sequence Python promises to keep across versions.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

from slamkern.data.synthetic.grammar import grammar
from slamkern.data.synthetic.schemas import OBJECTS, PERSONS, SCHEMAS, Numbers, Schema
from slamkern.errors import SlamkernError

LANGUAGES: tuple[str, ...] = ("en", "de", "fr", "es", "ru", "zh", "ja", "th", "sw", "bn")

# Tenths of the number assignments of a schema that belong to each split.
_SPLITS: dict[str, range] = {"train": range(2, 10), "valid": range(1, 2), "test": range(1)}


@dataclass(frozen=True)
class Problem:
    """One problem in several languages: ``questions`` and worked ``solutions`` by language code, the same ``answer``.

    ``id`` names schema, numbers and words, so equal ids mean equal problems, whatever call they came from.
    """

    id: str
    answer: int
    questions: dict[str, str]
    solutions: dict[str, str]


def generate(count: int, seed: int = 0, languages: Sequence[str] = LANGUAGES, split: str = "train") -> list[Problem]:
    """``count`` different problems of a split, the same for the same seed on every machine and Python version.

    A shorter list is the beginning of a longer one, and ``languages`` changes only which texts a problem carries.
    Raises `SlamkernError` for an unknown language or split, a negative count, or more problems than the split holds.
    """
    _check(count, languages, split)
    draw = random.Random(f"slamkern.corpus {split} {seed}").random
    pools = [(schema, _numbers(schema, split), _fillings(schema.slots)) for schema in SCHEMAS]
    taken: dict[str, set[int]] = {schema.name: set() for schema in SCHEMAS}
    problems: list[Problem] = []
    while len(problems) < count:
        which = int(draw() * len(pools))
        schema, numbers, fillings = pools[which]
        used, size = taken[schema.name], len(numbers) * len(fillings)
        if len(used) == size:
            del pools[which]
            continue
        index = int(draw() * size)
        while index in used:
            index = (index + 1) % size
        used.add(index)
        problems.append(_tell(schema, numbers[index // len(fillings)], fillings[index % len(fillings)], languages))
    return problems


def _check(count: int, languages: Sequence[str], split: str) -> None:
    if split not in _SPLITS:
        raise SlamkernError(f"unknown split {split!r}; known: {' '.join(_SPLITS)}")
    for code in languages:
        if code not in LANGUAGES:
            raise SlamkernError(f"the embedded corpus has no language {code!r}; it has: {' '.join(LANGUAGES)}")
    if count < 0:
        raise SlamkernError(f"cannot generate {count} problems; ask for 0 or more")
    size = sum(len(_numbers(schema, split)) * len(_fillings(schema.slots)) for schema in SCHEMAS)
    if count > size:
        raise SlamkernError(f"cannot generate {count} different problems: the {split} split holds {size}")


def _key(schema: Schema, numbers: Numbers) -> str:
    """Schema and given numbers, for example "give_away-24-7"."""
    return "-".join([schema.name, *(str(numbers[name]) for name in "abcd" if name in numbers)])


@cache
def _numbers(schema: Schema, split: str) -> tuple[Numbers, ...]:
    """The number assignments of a schema that fall into a split."""
    tenths = _SPLITS[split]
    return tuple(
        numbers
        for numbers in schema.numbers()
        if hashlib.sha256(_key(schema, numbers).encode()).digest()[0] % 10 in tenths
    )


@cache
def _fillings(slots: str) -> tuple[dict[str, str], ...]:
    """Every choice of words for the slots: different persons, different objects."""
    person_slots, object_slots = [slot for slot in slots if slot in "PQ"], [slot for slot in slots if slot in "XY"]
    chosen = product(permutations(PERSONS, len(person_slots)), permutations(OBJECTS, len(object_slots)))
    return tuple(dict(zip(person_slots + object_slots, persons + objects, strict=True)) for persons, objects in chosen)


def _tell(schema: Schema, numbers: Numbers, filling: dict[str, str], languages: Sequence[str]) -> Problem:
    questions, solutions = {}, {}
    for code in languages:
        told = grammar(code)
        words = {slot: (told.persons if slot in "PQ" else told.nouns)[word] for slot, word in filling.items()}
        questions[code] = told.render(told.questions[schema.name], numbers, words)
        solutions[code] = told.render(told.solutions[schema.name], numbers, words)
    return Problem("-".join([_key(schema, numbers), *filling.values()]), numbers["r"], questions, solutions)
