"""``predictions.jsonl``: one answered question a line, with the SHA-256 of its fields where we wrote it.

The record beside it (``evaluation.json``) has the hash of the whole file when the evaluation is finished.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from slamkern.errors import DamagedFileError, SlamkernError
from slamkern.files import unsealed
from slamkern.reading import LARGEST, parse_json, read_bytes
from slamkern.run_folder import read_record
from slamkern.schemas.check import Name, check

KIND = "evaluation"
PREDICTIONS_FILE = "predictions.jsonl"
SETTINGS_FILE = "evaluation.json"
DIGEST = "predictions_sha256"


@dataclass(frozen=True)
class Prediction:
    """One answered question: a line of a predictions file.

    ``prediction`` is None beyond the range of a float; ``truncated`` says whether the output was cut at
    ``max_new_tokens``, None where a file does not.
    """

    id: Name
    language: Name
    question: str
    gold: str
    output: str
    prediction: float | None
    correct: bool
    truncated: bool | None = None


_LINE = TypeAdapter(Prediction)


def read_predictions(path: str | Path, *, torn: bool = False) -> list[Prediction]:
    """The predictions of a file; a line that is none, or an id that repeats, is refused as ``file:line``.

    torn: leave out a last line without an end, which a killed run was writing. DamagedFileError where
    ``evaluation.json`` beside it says that its content was another when it was finished.
    """
    path = Path(path)
    content = read_bytes(path, limit=LARGEST)
    beside = path.with_name(SETTINGS_FILE)
    if path.name == PREDICTIONS_FILE and beside.is_file():
        written = read_record(beside, KIND)[1].get(DIGEST)
        if written is not None and hashlib.sha256(content).hexdigest() != written:
            raise DamagedFileError(f"{path} is damaged: it is not what was scored; restore it or evaluate again")
    predictions: dict[str, Prediction] = {}
    # Outputs may hold U+2028 and the like: only a line feed ends a line.
    for number, line in enumerate((content[: content.rfind(b"\n") + 1] if torn else content).split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = _read_line(line, f"{path}:{number}")
        if entry.id in predictions:
            raise SlamkernError(f"{path}:{number}: question {entry.id!r} is answered twice")
        predictions[entry.id] = entry
    return list(predictions.values())


def _read_line(line: bytes, place: str) -> Prediction:
    if not isinstance(values := parse_json(line, place), dict):
        raise SlamkernError(f"{place}: not a JSON object but {type(values).__name__}")
    unsealed(values, place, required=False)  # another program may have written it
    return check(_LINE, line, place)
