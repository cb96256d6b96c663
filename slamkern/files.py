"""Files that are either whole or absent: write beside the target, flush to disk, then rename.

Safetensors files too, with every way such a file can be wrong turned into one clear line.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slamkern.digests import tensor_digests
from slamkern.errors import DamagedFileError
from slamkern.reading import parse_json, read_json

TEMPORARY = ".tmp"  # ends the names of files and folders that are being written; they begin with a dot


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Give an OSError of the block the name of the file: a write to a full disk does not say which it was."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` if the block succeeds.

    The folder is created when missing. If the block raises (a full disk, an interrupt), the temporary
    file is removed and whatever stood at ``path`` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        with named_errors(path):
            yield temporary
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        # mkstemp creates 0600; a result file follows the umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``: renamed to it if the block succeeds, removed if it does not.

    ``folder`` must be absent or empty. Everything in it is put on disk before it gets its name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=TEMPORARY))
    try:
        with named_errors(folder):
            yield temporary
            for path in temporary.rglob("*"):
                _sync(path)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp made it private
        _sync(temporary)
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Put a file on disk, or the names in a folder: a renamed file is safe only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_checked(path: str | Path, value: Mapping[str, Any]) -> None:
    """:func:`write_json` of an object, with the SHA-256 of its values as the last one."""
    write_json(path, sealed(value))


def read_checked(path: str | Path, *, required: bool = True) -> Any:
    """What :func:`write_checked` wrote; see :func:`unsealed`."""
    return unsealed(read_json(path), str(path), required=required)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` as JSON values (no tuples), with their SHA-256 as the last one: a file or a line of one."""
    values = json.loads(json.dumps(value, allow_nan=False))
    return {**values, "sha256": _json_digest(values)}


def unsealed(values: Any, where: str, *, required: bool = True) -> Any:
    """What was :func:`sealed`, without the hash. DamagedFileError, beginning with ``where``, for anything else.

    required False lets values without a hash pass: those that a person wrote.
    """
    if not isinstance(values, dict) or "sha256" not in values:
        if required:
            raise DamagedFileError(f"{where} is not what slamkern wrote: it has no sha256; make it again")
        return values
    rest = {name: value for name, value in values.items() if name != "sha256"}
    if values["sha256"] != _json_digest(rest):
        raise DamagedFileError(
            f"{where} is damaged: its values are not what was written; restore or make it again"
            " (edited on purpose: remove its sha256)"
        )
    return rest


def _json_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON-encoded ``metadata`` to a safetensors file, atomically.

    Two entries are added to the metadata: ``sha256`` of each tensor, and ``checksum`` of the metadata themselves.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, "sha256": tensor_digests(contiguous)}
    encoded = {name: json.dumps(value, ensure_ascii=False) for name, value in described.items()}
    encoded["checksum"] = _checksum(encoded)
    with atomic_write(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=encoded)
        except SafetensorError as error:  # a full disk arrives as this, not as OSError
            raise OSError(f"cannot write {path}: {error}") from error


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file written by :func:`save_tensors`; ``kind`` names what it should be in error messages.

    DamagedFileError where anything in it is not what was written.
    """
    path = Path(path)
    while True:
        if not path.is_file():
            raise DamagedFileError(f"{path} does not exist; expected a {kind} file")
        before = file_identity(path)
        try:
            tensors, metadata = _read_tensors(path)
            problem = None
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            problem = error
        if file_identity(path) == before:
            break  # safetensors opens a file twice: one that is replaced meanwhile would be half the old, half the new
    if problem is not None:
        reason = " ".join(str(problem).split())
        raise DamagedFileError(f"{path} is not a {kind} file: truncated or not safetensors ({reason})") from problem
    if "slamkern_version" not in metadata:
        raise DamagedFileError(f"{path} is not a {kind} file: safetensors, but not written by slamkern")
    if metadata.pop("checksum", None) != _checksum(metadata):
        raise DamagedFileError(f"{path} is damaged: its metadata are not what was written; restore or make it again")
    values = {name: parse_json(value, f"{path}: metadata {name!r}") for name, value in metadata.items()}
    written, found = values.pop("sha256"), tensor_digests(tensors)
    for name in sorted(written.keys() | found.keys()):
        if written.get(name) != found.get(name):
            raise DamagedFileError(f"{path} is damaged: {name!r} is not what was written; restore or make it again")
    return tensors, values


def file_identity(path: str | Path) -> tuple[int, ...] | None:
    """What differs when a file was written again or replaced: device, inode, bytes, modified and changed (ns).

    None where there is no file; of a link, that of the file it leads to. Nothing but the kernel sets the last number:
    a time of modification that was put back does not hide a change.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        return tensors, dict(opened.metadata() or {})


def _checksum(encoded: Mapping[str, str]) -> str:
    text = json.dumps(sorted(encoded.items()), ensure_ascii=False)
    return json.dumps(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())
