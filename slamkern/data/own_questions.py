"""A user's own questions: a file of JSON or JSON lines, or a folder of them.

A record has ``question``, ``answer`` (ends in the number that is right) and ``language`` (ISO 639-1), which may be left
out where the file's name ends in it (``questions_de.jsonl``). Records of one ``id`` are the same question in different
languages, which makes a comparison sharper; without ids, questions of the same place in their languages are.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from slamkern.data.languages import LANGUAGES, language
from slamkern.data.readers import Record, field, read_records
from slamkern.data.tasks import Question, with_revision
from slamkern.errors import SlamkernError

TASK = "questions"


def load_questions(
    path: str | Path, languages: Sequence[str] | None = None, limit: int | None = None
) -> list[Question]:
    """The first ``limit`` questions (None: all) of each of ``languages`` (None: every one there is).

    SlamkernError, naming ``file:record``, for a missing field, an answer without a number, an unknown language, an id
    that repeats in a language; and for a language that is asked for and not there.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for pattern in ("*.json", "*.jsonl") for file in path.glob(pattern))
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise SlamkernError(f"no questions at {path}: use a .json or .jsonl file, or a folder of them")
    found: dict[str, dict[str, Question]] = {}
    for where, record, named in _records(files):
        code = language(field(record, ("language",), where) if named is None or "language" in record else named).code
        rows = found.setdefault(code, {})
        number = str(record["id"]) if record.get("id") is not None else str(len(rows) + 1)
        text, gold = field(record, ("question",), where), field(record, ("answer",), where)
        if not text or not any(character.isdecimal() for character in gold):
            problem = f"no number in its answer {gold[:40]!r}" if text else "no question"
            raise SlamkernError(f"{where} has {problem}")
        if number in rows:
            raise SlamkernError(f"{where} is the second question {number!r} in {code}")
        rows[number] = Question(f"{TASK}-{code}-{number}", code, text, gold)
    if not found:
        raise SlamkernError(f"{path} holds no questions; expected records with question, answer and language")
    if missing := [code for code in languages or () if code not in found]:
        raise SlamkernError(f"{path} has no questions in {' '.join(missing)}; it has: {' '.join(found)}")
    chosen = languages or tuple(found)
    return [question for code in chosen for question in with_revision(list(found[code].values()))[:limit]]


def _records(files: Sequence[Path]) -> Iterator[tuple[str, Record, str | None]]:
    """Place, record, and the language that the file's name ends in."""
    for file in files:
        ending = file.stem.rsplit("_", 1)[-1]
        for number, record in enumerate(read_records(file), 1):
            yield f"{file}:{number}", record, ending if ending in LANGUAGES else None
