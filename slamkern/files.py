"""Files that are either whole or absent: write beside the target, flush to disk, then rename.

Safetensors files too, with every way such a file can be wrong turned into one clear line.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.reading import parse_json

TEMPORARY = ".tmp"  # ends the names of files and folders that are being written; they begin with a dot


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
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        # mkstemp creates 0600; a result file follows the umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON-encoded ``metadata`` to a safetensors file, atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    encoded = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=encoded)
        except SafetensorError as error:  # a full disk arrives as this, not as OSError
            raise OSError(f"cannot write {path}: {error}") from error


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file written by :func:`save_tensors`; ``kind`` names what it should be in error messages."""
    path = Path(path)
    if not path.is_file():
        raise SlamkernError(f"{path} does not exist; expected a {kind} file")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise SlamkernError(f"{path} is not a {kind} file: truncated or not safetensors ({error})") from error
    if "slamkern_version" not in metadata:
        raise SlamkernError(f"{path} is not a {kind} file: safetensors, but not written by slamkern")
    return tensors, {name: parse_json(value, f"{path}: metadata {name!r}") for name, value in metadata.items()}
