"""The SHA-256 of a model's weights as loaded, computed once: afterwards it is known by the files they came from.

Kept in Hugging Face's folder (``HF_HOME``) under ``slamkern/base_weights``, a file for each model, data type and
versions of what loads it. A kept hash stands for the files as the kernel tells them apart: device, inode, size, times.
A disk that loses a bit changes none of these; who doubts it removes the folder, and everything is read again.
"""

import hashlib
import json
import logging
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slamkern.digests import state_digest
from slamkern.errors import SlamkernError
from slamkern.files import file_identity, read_checked, write_checked
from slamkern.pipeline.loading import resolve_device, resolve_dtype, source_of
from slamkern.version import installed_version

if TYPE_CHECKING:
    from slamkern.pipeline.sections import ModelSection

SETTLED = 2.0  # seconds: a file that is written twice within a tick of its file system's clock shows one time
log = logging.getLogger(__name__)


class BaseWeights:
    """Where the weights of ``section`` come from, as it was before they were loaded."""

    def __init__(self, section: "ModelSection") -> None:
        self.section = section
        self.source = _source(section)
        self._settled = self.source is not None and _last_change(self.source) < time.time() - SETTLED

    def known(self) -> str | None:
        """The kept digest where nothing about the files has changed: it needs no model."""
        if not self._unchanged or not (path := self._path).is_file():
            return None
        try:
            kept = read_checked(path)
        except (SlamkernError, OSError) as error:
            log.warning("%s; the weights are read again", error)
            return None
        return str(kept["weights"]) if kept.get("source") == self.source else None

    def digest(self, model: Any) -> str:
        """64 hexadecimal digits for ``model``, just loaded from there and not changed since.

        The kept ones where nothing about the files has changed; else of the values in memory. These are kept, unless
        the files changed while they were read or just before, or came with code of their own.
        """
        if (kept := self.known()) is not None:
            return kept
        digest = state_digest(model.state_dict())
        if self._unchanged and self._settled:
            try:
                write_checked(self._path, {"source": self.source, "weights": digest})
            except OSError as error:  # a home that cannot be written to costs time, not the run
                log.info("the hash of the weights is not kept: %s", error)
        return digest

    @property
    def _unchanged(self) -> bool:
        return self.source is not None and self.source == _source(self.section)

    @property
    def _path(self) -> Path:
        return _folder() / f"{hashlib.sha256(json.dumps(self.source).encode()).hexdigest()}.json"


def bind(notes: MutableMapping[str, Any], key: str, weights: str, folder: Path, name: str) -> None:
    """Note the hash of the weights ``name`` in a folder's record, under ``key``; the first one stays.

    SlamkernError where what is in the folder came from others.
    """
    before = notes.setdefault(key, weights)
    if before != weights:
        raise SlamkernError(
            f"{folder} was begun with other weights of {name}: their SHA-256 was {before[:16]}..., now"
            f" {weights[:16]}...; choose another folder or restore those weights"
        )


def _source(section: "ModelSection") -> dict[str, Any] | None:
    """All that the weights in memory depend on; None where that is not known."""
    if section.trust_remote_code:
        return None
    name, extra = source_of(section.name)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError):
            return None
    files = [folder / file for file in extra.values()] or sorted(path for path in folder.iterdir() if path.is_file())
    return {
        "files": [[path.name, *(file_identity(path) or ())] for path in files],
        "dtype": str(resolve_dtype(section.dtype, resolve_device(section.device))),
        "versions": {package: installed_version(package) for package in ("slamkern", "torch", "transformers", "gguf")},
    }


def _last_change(source: dict[str, Any]) -> float:
    """Seconds since the epoch."""
    return max((max(identity[-2:]) for _, *identity in source["files"] if identity), default=0) / 1e9


def _folder() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "slamkern" / "base_weights"
