"""The files of an evaluation: predictions as JSON lines, and the settings that they were made with.

``predictions.jsonl`` holds an object a line: ``id, language, question, gold, output, prediction, correct``, in
the order in which they were finished. ``evaluation.json`` beside it holds ``settings`` from the start and ``result``
when done. A run that is killed leaves at most one torn last line; `PredictionLog` drops it and goes on behind the rest.
Scores are not computed here.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from slamkern.errors import SlamkernError
from slamkern.files import write_json

PREDICTIONS_FILE = "predictions.jsonl"
SETTINGS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Prediction:
    """One answered question: a line of a predictions file. ``prediction`` is None beyond the range of a float."""

    id: str
    language: str
    question: str
    gold: str
    output: str
    prediction: float | None
    correct: bool


class PredictionLog:
    """The predictions of one evaluation, in memory and, with a folder, appended to its file line by line.

    Entering reads what an earlier run with the same ``settings`` finished. A folder that holds predictions of other
    settings, or of unknown ones, is refused and left as it is.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.settings = settings
        self.finished: dict[str, Prediction] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> "PredictionLog":
        if self.folder is None:
            return self
        path, beside = self.folder / PREDICTIONS_FILE, self.folder / SETTINGS_FILE
        if beside.exists():
            _check_settings(beside, self.settings)
        elif path.exists():
            raise SlamkernError(f"{path} has no {SETTINGS_FILE} that says how it was made; choose another folder")
        if path.exists():
            _drop_torn_line(path)
            self.finished = {entry.id: entry for entry in read_predictions(path)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, prediction: Prediction) -> None:
        """Record a finished question; the first one also creates the files, so that a refused run leaves none."""
        self.finished[prediction.id] = prediction
        if self.folder is None:
            return
        if self._file is None:
            if not (self.folder / SETTINGS_FILE).exists():
                write_json(self.folder / SETTINGS_FILE, {"settings": self.settings})
            # Line-buffered: each prediction reaches the system at once.
            self._file = (self.folder / PREDICTIONS_FILE).open("a", encoding="utf-8", newline="\n", buffering=1)
        self._file.write(json.dumps(asdict(prediction), ensure_ascii=False, allow_nan=False) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Write the scores beside the predictions."""
        if self.folder is not None:
            write_json(self.folder / SETTINGS_FILE, {"settings": self.settings, "result": result})


def read_predictions(path: str | Path) -> list[Prediction]:
    """The predictions of a file; a line that is none, or an id that repeats, is refused as ``file:line``."""
    path = Path(path)
    predictions: dict[str, Prediction] = {}
    # Outputs may hold U+2028 and the like: only a line feed ends a line.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = _read_line(line, f"{path}:{number}")
        if entry.id in predictions:
            raise SlamkernError(f"{path}:{number}: question {entry.id!r} is answered twice")
        predictions[entry.id] = entry
    return list(predictions.values())


def _read_line(line: bytes, place: str) -> Prediction:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise SlamkernError(f"{place}: not a JSON object ({error})") from None
    if not isinstance(values, dict):
        raise SlamkernError(f"{place}: not a JSON object but {type(values).__name__}")
    types = {"prediction": (int, float, type(None)), "correct": (bool,)}
    for entry in fields(Prediction):
        if not isinstance(values.get(entry.name), types.get(entry.name, (str,))):
            raise SlamkernError(f"{place}: field {entry.name!r} is {values.get(entry.name)!r}, not a {entry.type}")
    return Prediction(**{entry.name: values[entry.name] for entry in fields(Prediction)})


def read_settings(path: Path) -> dict[str, Any]:
    """The ``settings`` of an ``evaluation.json``: what the predictions beside it were made with."""
    try:
        settings = json.loads(path.read_bytes())["settings"]
    except (ValueError, KeyError, TypeError):
        settings = None
    if not isinstance(settings, dict):
        raise SlamkernError(f"{path} is not the record of an evaluation (a JSON object with 'settings')")
    return settings


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    found = read_settings(path)
    for name in settings:
        # A model is its weights; the same ones may lie elsewhere by now.
        if name != "model" and found.get(name) != settings[name]:
            raise SlamkernError(
                f"{path.parent} holds an evaluation with {name} {found.get(name)!r}, not {settings[name]!r}; "
                "choose another folder"
            )


def _drop_torn_line(path: Path) -> None:
    """Cut the file behind its last line feed: what follows was being written when the run was killed."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
