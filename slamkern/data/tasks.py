"""Benchmarks as data: questions with their gold answers, from the files their authors publish.

    mgsm       ``mgsm_{lang}.tsv`` (``question<TAB>answer``, no header), MathOctopus' ``mgsm_{Language}.json``, or the
               hub's juletxara/mgsm. 250 questions in eleven languages (Shi et al., 2023).
    mgsm-rev2  MGSM with errors of translation corrected (Peter et al., arXiv 2511.05162): files of the same names from
               google-research-datasets/MGSM-Rev2, or the hub's lightonai/mgsm-rev2.
    msvamp     ``test_{Language}.json``: JSON lines of ``query, response``, or of ``query, equation, response, m_query``
               where ``m_query`` is the text in the language; or the hub's Mathoctopus/MSVAMP. 1000 questions in ten
               languages (Chen et al., 2024).
    corpus     problems of the embedded generator that training never sees.

A question knows the revision of the set that it comes from: the number of its rows, and a SHA-256 of their content,
which is the same for the same rows whatever file they came in.

How a question is put to a model is ``prompts``, how an answer is judged is ``answers`` (its ``extract_answer`` is the
rule of these tasks and can be had here too); nothing here runs a model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slamkern.data.answers import extract_answer
from slamkern.data.languages import LANGUAGES, language
from slamkern.data.readers import Record, field, hub_records, read_lines, read_records
from slamkern.errors import SlamkernError, refuse_string

__all__ = ["TASKS", "Question", "extract_answer", "load_task"]

CORPUS_QUESTIONS = 100
_MSVAMP_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "th", "zh")
_HUB = {
    "mgsm": ("juletxara/mgsm", (*_MSVAMP_LANGUAGES, "te")),
    "mgsm-rev2": ("lightonai/mgsm-rev2", (*_MSVAMP_LANGUAGES, "te")),
    "msvamp": ("Mathoctopus/MSVAMP", _MSVAMP_LANGUAGES),
}
# In the order in which they are looked for; {code} is ISO 639-1, {name} the English name.
_FILES = {
    **dict.fromkeys(
        ("mgsm", "mgsm-rev2"), ("mgsm_{code}.tsv", "mgsm_{name}.json", "mgsm_{code}.json", "mgsm_{code}.jsonl")
    ),
    "msvamp": ("test_{name}.json", "msvamp_{code}.json", "msvamp_{code}.jsonl", "test_{code}.json"),
}
TASKS: tuple[str, ...] = ("mgsm", "mgsm-rev2", "msvamp", "corpus")


@dataclass(frozen=True)
class Revision:
    """What the questions of a language were: how many rows, and the SHA-256 (hex) of their questions and answers."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class Question:
    """A question in a language and its gold answer as text that ends in the number.

    ``revision`` is that of all questions of its source in this language.
    """

    id: str
    language: str
    question: str
    gold: str
    revision: Revision | None = dataclasses.field(default=None, compare=False, repr=False)


def with_revision(questions: Sequence[Question]) -> list[Question]:
    """All questions of a language from one source, each with their common revision."""
    lines = (json.dumps([question.question, question.gold], ensure_ascii=False) + "\n" for question in questions)
    revision = Revision(len(questions), hashlib.sha256("".join(lines).encode()).hexdigest())
    return [replace(question, revision=revision) for question in questions]


def load_task(
    name: str,
    languages: Sequence[str] | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    *,
    first: int = 0,
    every: int = 1,
) -> list[Question]:
    """The first ``limit`` questions (None: all) of each language (None: every one there is), language by language.

    ``first``: how many of these are left out at the beginning. ``every``: of the others, one in so many, from the first
    of them on.

    ``data`` is a folder with the files above, or a pattern such as ``dir/test_{language}.jsonl`` with ``{language}``
    (code or English name), or one file for one language; without it the questions come from the hub. ``SlamkernError``
    for an unknown task or language, a missing, empty or malformed file, a gold answer without a number, and a language
    that has no more than ``first`` questions.
    """
    questions = _load(name, languages, data, limit)
    if first == 0 and every == 1:
        return questions
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.language, []).append(question)
    for code, rows in groups.items():
        if len(rows) <= first:
            raise SlamkernError(f"{name} has {len(rows)} questions in {code}: none is left behind the first {first}")
    return [question for rows in groups.values() for question in rows[first::every]]


def _load(name: str, languages: Sequence[str] | None, data: str | Path | None, limit: int | None) -> list[Question]:
    if name not in TASKS:
        raise SlamkernError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise SlamkernError(f"limit={limit}; use at least 1 question per language, or None for all")
    refuse_string(languages, "languages")
    codes = None if languages is None else list(dict.fromkeys(language(code).code for code in languages))
    if codes == []:
        raise SlamkernError("no languages given; name some or leave it out for all")
    if name == "corpus":
        if data is not None:
            raise SlamkernError(f"the task corpus is generated and reads no files: leave out data={data}")
        return _corpus(codes, limit)
    if data is None:
        return _hub(name, codes, limit)
    files = _find(name, Path(data), codes)
    return [question for code, file in files.items() for question in _read(name, code, file)[:limit]]


def _find(name: str, data: Path, codes: list[str] | None) -> dict[str, Path]:
    """The file of each language."""
    if "{language}" in str(data):
        patterns, folder = [str(data).replace("{language}", part) for part in ("{code}", "{name}")], Path()
    elif data.is_dir():
        patterns, folder = list(_FILES[name]), data
    else:
        return _single(data, codes)
    found = {}
    for code in codes or LANGUAGES:
        for pattern in patterns:
            file = folder / pattern.replace("{code}", code).replace("{name}", language(code).name)
            if code not in found and file.is_file():
                found[code] = file
    missing = [code for code in codes or () if code not in found]
    if missing or not found:
        expected = " or ".join(pattern.replace("{code}", "de").replace("{name}", "German") for pattern in patterns[:2])
        lacking = f"in {' '.join(missing)}" if missing else "in any language"
        raise SlamkernError(f"no {name} questions {lacking} at {data} (looked for files like {expected})")
    return found


def _single(file: Path, codes: list[str] | None) -> dict[str, Path]:
    """One file; its language is asked for or is the end of its name, as in mgsm_de.tsv and test_German.json."""
    ending = file.stem.rsplit("_", 1)[-1].lower()
    named = [entry.code for entry in LANGUAGES.values() if ending in (entry.code, entry.name.lower())]
    if codes is None and not named:
        raise SlamkernError(f"{file} does not say its language; name one, or call it like mgsm_de.tsv")
    if codes is not None and len(codes) > 1:
        raise SlamkernError(f"{file} is one file for the languages {' '.join(codes)}; give a folder or {{language}}")
    return {(codes or named)[0]: file}


def _read(name: str, code: str, file: Path) -> list[Question]:
    if file.suffix != ".tsv":
        return _questions(name, code, read_records(file), str(file))
    records = []
    for number, line in enumerate(read_lines(file), 1):
        question, tab, answer = line.rpartition("\t")
        if not tab:
            raise SlamkernError(f"{file}:{number} has no tab between question and answer")
        records.append({"question": question, "answer": answer})
    return _questions(name, code, records, str(file))


def _questions(name: str, code: str, records: list[Record], source: str) -> list[Question]:
    questions = []
    for number, record in enumerate(records, 1):
        where = f"{source}:{number}"
        text = field(record, ("m_query", "query", "question"), where)
        gold = field(record, ("response", "answer_number", "answer"), where)
        if not text or not any(character.isdecimal() for character in gold):
            problem = f"no number in its answer {gold[:40]!r}" if text else "no question"
            raise SlamkernError(f"{where} has {problem}")
        questions.append(Question(f"{name}-{code}-{number}", code, text, gold))
    return with_revision(questions)


def _hub(name: str, codes: list[str] | None, limit: int | None) -> list[Question]:
    repository, available = _HUB[name]
    if unavailable := [code for code in codes or () if code not in available]:
        raise SlamkernError(f"{repository} has no {' '.join(unavailable)}; it has: {' '.join(available)}")
    questions = []
    for code in codes or available:
        records = list(hub_records(repository, "test", code))
        questions += _questions(name, code, records, f"{repository}/{code}")[:limit]
    return questions


def _corpus(codes: list[str] | None, limit: int | None) -> list[Question]:
    from slamkern.data import synthetic

    codes = codes or list(synthetic.LANGUAGES)
    problems = synthetic.generate(limit or CORPUS_QUESTIONS, 0, codes, "test")
    return [
        question
        for code in codes
        for question in with_revision(
            [Question(f"corpus-{code}-{p.id}", code, p.questions[code], str(p.answer)) for p in problems]
        )
    ]
