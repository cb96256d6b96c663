"""GSM8KInstruct_Parallel (MathOctopus): problems with solutions in ten languages, each matched to its English one.

The published file has JSON lines with ``prompt`` and ``chosen``: the language stands inside the prompt, the question
after ``### Instruction:``. Records with plain fields are read too: a language (code or English name), a question, a
solution and perhaps an id. The published file has no ids and its languages miss different rows, so a record finds its
English problem by, in this order: its id; its position, when the languages have equally many rows and the final answers
agree; otherwise the numbers of its question and solution, where that is unambiguous. What finds none is dropped.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from slamkern.data.answers import extract_answer
from slamkern.data.languages import LANGUAGES, language
from slamkern.data.readers import Record, field
from slamkern.errors import SlamkernError

LOGGER = logging.getLogger(__name__)

_QUESTION = ("query", "question", "instruction", "m_query")
_SOLUTION = ("response", "answer", "solution", "output", "chosen")
_LANGUAGE = ("lang", "language")
_ID = ("id", "index", "idx")
_CODES = {entry.name.lower(): entry.code for entry in LANGUAGES.values()}


@dataclass(frozen=True)
class Problem:
    """One problem in one language."""

    language: str
    question: str
    solution: str
    id: str | None


def match_to_english(records: list[Record], name: str) -> Iterator[tuple[Problem, Problem]]:
    """(problem, the same problem in English), in the order of the file. ``name`` is for messages."""
    by_language: dict[str, list[Problem]] = defaultdict(list)
    for number, record in enumerate(records, 1):
        problem = _problem(record, f"record {number} of {name}")
        by_language[problem.language].append(problem)
    english = by_language.pop("en", [])
    counts = ", ".join(f"{code} {len(problems)}" for code, problems in sorted(by_language.items()))
    if not english or not by_language:
        raise SlamkernError(f"{name} needs records in English and another language; it has en {len(english)}, {counts}")
    for code, problems in by_language.items():
        matched = _match(problems, english)
        if not matched:
            raise SlamkernError(f"{name}: no {code} record matches an English one; it has en {len(english)}, {counts}")
        if len(matched) < len(problems):
            LOGGER.warning("%s: %d of %d %s records match no English one", name, len(problems) - len(matched),
                           len(problems), code)  # fmt: skip
        yield from matched


def _problem(record: Record, where: str) -> Problem:
    if "prompt" in record and "chosen" in record:
        prompt = field(record, ("prompt",), where)
        named = re.search(r"\bin (\w+)\. Please answer in|\b(?:request|answer) in (\w+)", prompt)
        question = re.search(r"### Instruction:\n(.*?)\n\n### Response", prompt, re.DOTALL)
        if named is None or question is None:
            raise SlamkernError(f"{where}: its prompt names no language or has no '### Instruction:'")
        spoken, asked = named.group(1) or named.group(2), question.group(1).strip()
    else:
        spoken, asked = field(record, _LANGUAGE, where), field(record, _QUESTION, where)
    code = _CODES.get(spoken.lower(), spoken.lower())
    identity = next((str(record[name]) for name in _ID if record.get(name) is not None), None)
    return Problem(language(code).code, asked, field(record, _SOLUTION, where), identity)


def _match(problems: list[Problem], english: list[Problem]) -> list[tuple[Problem, Problem]]:
    if all(problem.id is not None for problem in (*problems, *english)):
        target = {problem.id: problem for problem in english}
        return [(problem, target[problem.id]) for problem in problems if problem.id in target]
    if len(problems) == len(english):
        pairs = list(zip(problems, english, strict=True))
        agree = sum(extract_answer(problem.solution) == extract_answer(other.solution) for problem, other in pairs)
        # A translated solution may end in another number by accident; shuffled ones agree in a few per cent.
        if agree >= 0.8 * len(pairs):
            return pairs
    mine, theirs = Counter(map(_numbers, problems)), Counter(map(_numbers, english))
    unique = {_numbers(problem): problem for problem in english if theirs[_numbers(problem)] == 1}
    keys = [(problem, _numbers(problem)) for problem in problems]
    return [(problem, unique[key]) for problem, key in keys if key in unique and mine[key] == 1]


def _numbers(problem: Problem) -> tuple[tuple[float, ...], float]:
    """What translation keeps: the numbers of the question, in any order, and the final answer."""
    digits = re.findall(r"\d+(?:\.\d+)?", re.sub(r"(\d)[,.\u202f\u00a0](\d{3})\b", r"\1\2", problem.question))
    return tuple(sorted(map(float, digits))), extract_answer(problem.solution)
