"""A folder that belongs to one configuration: the same one goes on in it, any other is refused, one process at a time.

The record of a folder (``run.json``, or another name) is a JSON object: ``slamkern_version``, ``kind`` (what is in the
folder), ``settings`` (what must be equal for the work to go on) and whatever was noted beside them. A folder belongs to
its settings as soon as it holds a result; the record is written before the first one.

Of the processes of a job, the main one alone holds the folder and writes to it; the others see what it found, and fail
where it fails.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from slamkern import distributed
from slamkern.errors import SlamkernError
from slamkern.files import TEMPORARY, read_checked, write_checked
from slamkern.schemas.check import check
from slamkern.schemas.records import RECORDS
from slamkern.version import __version__

LOCK = ".lock"
_OURS = ("slamkern_version", "kind", "settings")


class HeldFolder:
    """Context manager: from entering to leaving, no other process works in the folder.

    A folder in which nothing was written is removed at the end if it was not there before. beside: the folder is not
    made here but appears as a whole (``atomic_folder``), so its lock is a file in the folder above it.
    """

    def __init__(self, path: str | Path, *, beside: bool = False):
        self.path = Path(path)
        whole = self.path.resolve()
        self._lock_path = whole.with_name(f".{whole.name}{LOCK}") if beside else self.path / LOCK
        self._lock = FileLock(self._lock_path, timeout=0)
        self._new = False

    def __enter__(self) -> Self:
        distributed.on_main(self._take)
        return self

    def _take(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise SlamkernError(f"{self.path} is a file; choose a folder for the output")
        self._new = not self._lock_path.parent.exists()
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise SlamkernError(
                f"{self.path} is in use by {self._owner()}; wait until it is done or choose another folder"
            ) from None
        try:
            self._lock_path.write_text(_process(), encoding="utf-8")
        except BaseException:  # a full disk
            self._release()
            raise

    def _owner(self) -> str:
        """Who holds the lock; it may have just begun or just ended."""
        with suppress(FileNotFoundError):
            if owner := self._lock_path.read_text(encoding="utf-8", errors="replace").strip():
                return owner
        return "another process"

    def __exit__(self, *_: object) -> None:
        if distributed.is_main():
            self._release()

    def _release(self) -> None:
        # While the lock is held: whoever has opened the file by now finds it without a name, and opens a new one.
        self._lock_path.unlink(missing_ok=True)
        self._lock.release()
        folder = self._lock_path.parent
        if self._new and not any(folder.iterdir()):
            folder.rmdir()


class RunFolder(HeldFolder):
    """A held folder with a record of what it was made with.

    kind: "pipeline", "training" or "evaluation". record: the name of its record. results: globs of the files that say
    that work has begun. inside: folders in it that have no record of their own. ``settings`` are those of the record
    found, and those claimed afterwards; ``notes`` are the other values of the record.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        *,
        record: str = "run.json",
        results: Sequence[str] = ("*",),
        inside: Sequence[str] = (),
    ):
        super().__init__(path)
        self.kind = kind
        self.record = self.path / record
        self.settings: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self._results = results
        self._folders = [self.path, *(self.path / name for name in inside)]

    def __enter__(self) -> Self:
        self.settings, self.notes = distributed.on_main(self._open)
        return self

    def _open(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take the lock and read the record: (settings, notes)."""
        self._take()
        try:
            return read_record(self.record, self.kind) if self.record.is_file() else ({}, {})
        except BaseException:
            self.__exit__()
            raise

    @property
    def began(self) -> bool:
        """Whether the folder holds results."""
        return distributed.on_main(lambda: self._first_result() is not None)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Go on with this folder or begin in it. SlamkernError, with nothing changed, where other settings were used.

        What a killed process left half-written is removed.
        """
        self.settings, self.notes = distributed.on_main(lambda: self._claim(settings))

    def _claim(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(settings, notes) of the folder from now on."""
        wanted = json.loads(json.dumps(settings, allow_nan=False))  # as they are read back: no tuples
        found = self._first_result()
        if found is not None and not self.record.is_file():
            raise SlamkernError(
                f"{self.path} holds {found.name}, but no {self.record.name} that says what it was made with;"
                " choose another folder"
            )
        if found is not None and (change := difference(self.settings, wanted)):
            raise SlamkernError(
                f"{self.path} holds another run: {change}; choose another folder or use what that run used"
            )
        for path in [path for folder in self._folders for path in folder.glob(f".*{TEMPORARY}")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return wanted, {} if found is None else self.notes

    def save(self) -> None:
        """Write the record: settings and notes."""
        if not distributed.is_main():
            return
        write_checked(
            self.record,
            {"slamkern_version": __version__, "kind": self.kind, "settings": self.settings, **self.notes},
        )

    def _first_result(self) -> Path | None:
        paths = (path for pattern in self._results for path in sorted(self.path.glob(pattern)))
        return next((path for path in paths if path != self.record and not path.name.startswith(".")), None)


def read_record(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, notes) of a record. SlamkernError where it is none, or one of another kind, or damaged."""
    values = read_checked(path)
    if values.get("kind") != kind or not isinstance(values.get("settings"), dict):
        raise SlamkernError(f"{path} is of a slamkern {values.get('kind')} run; expected one of kind {kind}")
    check(RECORDS[kind], json.dumps(values), f"{path} is no record of a slamkern {kind} run")
    return values["settings"], {name: value for name, value in values.items() if name not in _OURS}


def difference(old: Any, new: Any, name: str = "") -> str | None:
    """The first value in which two trees of JSON values differ, in words; None where they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            if found := difference(old.get(key), new.get(key), f"{name}.{key}" if name else str(key)):
                return found
        return None
    return None if json.dumps(old) == json.dumps(new) else f"{name} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"


def command_line() -> list[str]:
    """The command of this process, without the folder it lies in."""
    script = Path(sys.argv[0])
    # Of `python -m slamkern` Python tells the file.
    name = ["python", "-m", script.parent.name] if script.name == "__main__.py" else [script.name]
    return [*name, *sys.argv[1:]]


def _process() -> str:
    command = " ".join(command_line())[:80]
    return f"process {os.getpid()} on {platform.node()} ({command})"
