"""Templates that agree: how the table of one language turns a problem's numbers and words into sentences.

A language is a text file. ``#`` begins a comment; blocks are separated by an empty line:

    answer, count, ...    settings, one a line, see ``Grammar``
    persons COLUMNS       one person a row: its key, then a form for each column
    nouns COLUMNS         the same of things and units; as many blocks as need other columns
    problems              for every schema its name and question, then a line ``= SOLUTION``

In a row "_" is a space and "-" is nothing. A template is a sentence with fields:

    {a}            the number a, in the language's digits
    {a:X}          "a of X": number and noun in the language's counting construction (plural, case, classifier)
    {a:X.acc}      the same in a case that the language has a ``count.acc`` for
    {a?one|few}    a word that agrees with the number, by the language's plural category
    {X}  {X:gen}   the first, or the named, column of the word X in the language's table
    {X?der|die}    a word that agrees with the gender of X (m|f|n)

X, Y are objects, P, Q persons, and any other name after a colon a unit of the language's own noun table.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

Forms = Mapping[str, str]

_FIELD = re.compile(r"\{(\w+)(?:([:?])([^{}]*))?\}")
_GENDERS = "mfn"


def _slavic(number: int) -> int:
    """1, 21 are 0; 2-4, 22-24 are 1; the others, 11-14 among them, are 2."""
    if number % 10 == 1 and number % 100 != 11:
        return 0
    return 1 if 2 <= number % 10 <= 4 and not 12 <= number % 100 <= 14 else 2


# Plural categories: ``one`` is 0 for one and 1 for everything else (English, German, Spanish and, from 2 on, French).
_PLURALS: Mapping[str, Callable[[int], int]] = MappingProxyType(
    {"none": lambda number: 0, "one": lambda number: 0 if number == 1 else 1, "slavic": _slavic}
)
# Finishing touches: the French elision of de and que, a space between Chinese characters and digits.
_FINISHES: Mapping[str, tuple[re.Pattern[str], str]] = MappingProxyType(
    {
        "elide": (re.compile(r"\b(d|qu)e (?=[aeiouhâéèêœ])", re.IGNORECASE), r"\1'"),
        "space_digits": (re.compile(r"(?<=[\u4e00-\u9fff])(?=\d)|(?<=\d)(?=[\u4e00-\u9fff])"), " "),
    }
)


class Field(NamedTuple):
    """One ``{slot...}`` of a template; ``mark`` is "", ":" or "?"."""

    slot: str
    mark: str
    noun: str
    case: str
    choices: tuple[str, ...]


Template = tuple[str | Field, ...]


def parse(text: str) -> Template:
    """Split a template into literal text and fields, once, so that filling it in is cheap."""
    pieces: list[str | Field] = []
    end = 0
    for match in _FIELD.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        slot, mark, argument = match[1], match[2] or "", match[3] or ""
        noun, _, case = argument.partition(".") if mark == ":" else ("", "", "")
        pieces.append(Field(slot, mark, noun, case, tuple(argument.split("|")) if mark == "?" else ()))
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    return tuple(pieces)


def _words(header: str, rows: list[str]) -> dict[str, Forms]:
    names = header.split()[1:]
    words: dict[str, Forms] = {}
    for row in rows:
        key, *forms = row.split()
        cleaned = ("" if form == "-" else form.replace("_", " ") for form in forms)
        words[key] = dict(zip(names, cleaned, strict=True))
    return words


@dataclass(frozen=True)
class Grammar:
    """One language: word tables, templates by schema, and what the templates rely on.

    ``answer`` ends every solution. ``count`` holds, by case ("" is the plain one), the counted noun for each plural
    category: ``{n}`` is the number, ``{one}`` a column. ``plural`` and ``finish`` name a rule of this module; ``join``
    puts the sentences of a solution together without a space.
    """

    persons: Mapping[str, Forms]
    nouns: Mapping[str, Forms]
    questions: Mapping[str, Template]
    solutions: Mapping[str, Template]
    count: Mapping[str, tuple[str, ...]]
    plural: Callable[[int], int]
    finish: tuple[re.Pattern[str], str] | None
    digits: str

    @classmethod
    def read(cls, text: str) -> "Grammar":
        """A grammar from the text of a language's file."""
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        first, *blocks = [block.splitlines() for block in "\n".join(lines).strip().split("\n\n")]
        settings = {name: value for name, _, value in (line.partition(" ") for line in first)}
        tables: dict[str, dict[str, Forms]] = {"persons": {}, "nouns": {}}
        questions, solutions = {}, {}
        for header, *rows in blocks:
            if header != "problems":
                tables[header.split()[0]].update(_words(header, rows))
                continue
            end = ("" if "join" in settings else " ") + settings["answer"]
            for question, solution in zip(rows[::2], rows[1::2], strict=True):
                name, _, sentence = question.partition(" ")
                questions[name] = parse(sentence)
                solutions[name] = parse(solution.removeprefix("= ") + end)
        return cls(
            **tables,
            questions=questions,
            solutions=solutions,
            count={
                name.partition(".")[2]: tuple(value.split(" | "))
                for name, value in settings.items()
                if name.partition(".")[0] == "count"
            },
            plural=_PLURALS[settings.get("plural", "one")],
            finish=_FINISHES[settings["finish"]] if "finish" in settings else None,
            digits=settings.get("digits", "0123456789"),
        )

    def render(self, template: Template, numbers: Mapping[str, int], words: Mapping[str, Forms]) -> str:
        """Fill in a template: ``numbers`` by name, ``words`` (persons and objects) by slot."""
        parts = []
        for piece in template:
            if isinstance(piece, str):
                parts.append(piece)
            elif piece.slot in numbers:
                parts.append(self._number(piece, numbers[piece.slot], words))
            else:
                parts.append(_word(piece, words[piece.slot]))
        text = "".join(parts)
        return text if self.finish is None else self.finish[0].sub(self.finish[1], text)

    def _number(self, field: Field, number: int, words: Mapping[str, Forms]) -> str:
        if field.mark == "?":
            return field.choices[self.plural(number)]
        text = str(number)
        if self.digits[0] != "0":
            text = "".join(self.digits[int(digit)] for digit in text)
        if not field.mark:
            return text
        forms = words[field.noun] if field.noun in words else self.nouns[field.noun]
        return self.count[field.case][self.plural(number)].format(n=text, **forms)


def _word(field: Field, forms: Forms) -> str:
    if field.mark == "?":
        return field.choices[_GENDERS.index(forms["g"])]
    return forms[field.noun] if field.mark else next(iter(forms.values()))


@cache
def grammar(code: str) -> Grammar:
    """The grammar of one of the embedded languages, read when it is first needed."""
    return Grammar.read(Path(__file__).with_name(f"{code}.txt").read_text(encoding="utf-8"))
