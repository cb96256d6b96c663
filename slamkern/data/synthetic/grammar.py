"""Templates that agree: how one language turns a problem's numbers and words into sentences.

A template is a sentence with fields; a language (`Grammar`) says what the fields become.

    {a}            the number a, in the language's digits
    {a:X}          "a of X": number and noun in the language's counting construction (plural, case, classifier)
    {a:X.acc}      the same in a case or variant that the language's `count` knows
    {a?one|few}    a word that agrees with the number, by the language's plural category
    {X}  {X:gen}   the first, or the named, column of the word X in the language's table
    {X?der|die}    a word that agrees with the gender of X (m|f|n)

X, Y are objects, P, Q persons, and any other name after a colon a unit of the language's own noun table.
Nothing here is linguistic: plural rules, cases and concord live in the language files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Forms = Mapping[str, str]
Table = Mapping[str, Forms]

_FIELD = re.compile(r"\{(\w+)(?:([:?])([^{}]*))?\}")
_GENDERS = "mfn"


class Field(NamedTuple):
    """One ``{slot...}`` of a template; ``mark`` is "", ":" or "?"."""

    slot: str
    mark: str
    noun: str
    case: str
    choices: tuple[str, ...]


Template = tuple[str | Field, ...]


def table(columns: str, rows: str) -> Table:
    """Word forms from text: one word a row, its key first, then a form per column; "_" is a space, "-" is nothing."""
    names = columns.split()
    words = {}
    for row in rows.strip().splitlines():
        key, *forms = row.split()
        cleaned = ("" if form == "-" else form.replace("_", " ") for form in forms)
        words[key] = dict(zip(names, cleaned, strict=True))
    return words


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


def plural_of_one(number: int) -> int:
    """Plural category 0 for one and 1 for everything else: English, German, Spanish and, from 2 on, French."""
    return 0 if number == 1 else 1


def same(text: str) -> str:
    """No finishing touch."""
    return text


@dataclass(frozen=True)
class Grammar:
    """One language: word tables, templates by schema, and the rules that the templates rely on.

    ``count(digits, category, forms, case)`` builds the counted noun; ``category(number)`` is the plural category;
    ``finish`` sees each finished text (elision, spacing); ``space`` separates the sentences of a solution.
    """

    persons: Table
    nouns: Table
    questions: Mapping[str, Template]
    solutions: Mapping[str, Template]
    count: Callable[[str, int, Forms, str], str]
    category: Callable[[int], int]
    finish: Callable[[str], str]
    digits: str

    @classmethod
    def build(
        cls,
        persons: Table,
        nouns: Table,
        texts: Mapping[str, tuple[str, str]],
        answer: str,
        count: Callable[[str, int, Forms, str], str],
        category: Callable[[int], int] = plural_of_one,
        finish: Callable[[str], str] = same,
        digits: str = "0123456789",
        space: str = " ",
    ) -> "Grammar":
        """A grammar from ``texts[schema] = (question, solution)``; ``answer`` is appended to every solution."""
        questions = {name: parse(question) for name, (question, _) in texts.items()}
        solutions = {name: parse(solution + space + answer) for name, (_, solution) in texts.items()}
        return cls(persons, nouns, questions, solutions, count, category, finish, digits)

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
        return self.finish("".join(parts))

    def _number(self, field: Field, number: int, words: Mapping[str, Forms]) -> str:
        if field.mark == "?":
            return field.choices[self.category(number)]
        text = str(number)
        if self.digits[0] != "0":
            text = "".join(self.digits[int(digit)] for digit in text)
        if not field.mark:
            return text
        forms = words[field.noun] if field.noun in words else self.nouns[field.noun]
        return self.count(text, self.category(number), forms, field.case)


def _word(field: Field, forms: Forms) -> str:
    if field.mark == "?":
        return field.choices[_GENDERS.index(forms["g"])]
    return forms[field.noun] if field.mark else next(iter(forms.values()))
