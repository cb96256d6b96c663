"""Safetensors files, whole or absent, with every way a file can be wrong turned into one clear line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.files import atomic_write


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
    try:
        return tensors, {name: json.loads(value) for name, value in metadata.items()}
    except json.JSONDecodeError as error:
        raise SlamkernError(f"{path} is not a {kind} file: its metadata is not JSON ({error})") from error
