"""The files of an evaluation: predictions as JSON lines, and the settings that they were made with.

``predictions.jsonl`` holds an object a line: ``id, language, question, gold, output, prediction, correct, truncated``
and the ``sha256`` of these: as they are finished, and in the order of the questions when all are. ``evaluation.json``
beside it is the record of the folder (see ``run_folder``): ``settings``, ``model`` and ``data`` (the revision of the
questions of each language) from the start, and ``result`` when done. A run that is killed leaves at most one torn last
line; `PredictionLog` drops it and goes on behind the rest. Scores are not computed here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from slamkern import distributed
from slamkern.files import named_errors, sealed, write_text
from slamkern.run_folder import RunFolder
from slamkern.schemas.predictions import DIGEST, KIND, PREDICTIONS_FILE, SETTINGS_FILE, Prediction, read_predictions


class PredictionLog:
    """The predictions of one evaluation, in memory and, with a folder, appended to its file line by line.

    Entering reads what an earlier run with the same ``settings`` finished. A folder that holds predictions of other
    settings, or of unknown ones, is refused and left as it is. ``notes`` are kept beside the settings, not compared.
    """

    def __init__(
        self, folder: str | Path | None, settings: dict[str, Any], notes: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = (
            None if folder is None else RunFolder(folder, KIND, record=SETTINGS_FILE, results=[PREDICTIONS_FILE])
        )
        self.settings, self.notes = settings, dict(notes or {})
        self.finished: dict[str, Prediction] = {}
        self._file: TextIO | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "PredictionLog":
        if self.folder is None:
            return self
        with self._stack as stack:
            stack.enter_context(self.folder)
            self.folder.claim(self.settings)
            self.finished = distributed.on_main(self._read)
            self.folder.notes = self.notes
            self._stack = stack.pop_all()
        return self

    def _read(self) -> dict[str, Prediction]:
        """What was finished before."""
        assert self.folder is not None
        path = self.folder.path / PREDICTIONS_FILE
        if not path.exists():
            return {}
        if DIGEST not in self.folder.notes:
            _drop_torn_line(path)
        return {entry.id: entry for entry in read_predictions(path)}

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def add(self, prediction: Prediction) -> None:
        """Record a finished question; the first one also creates the files, so that a refused run leaves none."""
        self.finished[prediction.id] = prediction
        if self.folder is None:
            return
        if self._file is None:
            self.folder.save()
            # Line-buffered: each prediction reaches the system at once.
            path = self.folder.path / PREDICTIONS_FILE
            self._stack.enter_context(named_errors(path))  # closing writes what is left
            self._file = self._stack.enter_context(path.open("a", encoding="utf-8", newline="\n", buffering=1))
        with named_errors(self._file.name):
            self._file.write(_line(prediction))

    def finish(self, order: Iterable[str], result: dict[str, Any]) -> None:
        """Write the predictions anew, questions of ``order`` first and in that order, and the scores beside them."""
        if self.folder is None:
            return
        lines = [_line(entry) for entry in ({key: self.finished[key] for key in order} | self.finished).values()]
        content = "".join(lines)
        write_text(self.folder.path / PREDICTIONS_FILE, content)
        self.folder.notes = {**self.notes, DIGEST: hashlib.sha256(content.encode()).hexdigest(), "result": result}
        self.folder.save()


def _line(prediction: Prediction) -> str:
    return json.dumps(sealed(asdict(prediction)), ensure_ascii=False) + "\n"


def _drop_torn_line(path: Path) -> None:
    """Cut the file behind its last line feed: what follows was being written when the run was killed."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
