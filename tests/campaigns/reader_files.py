"""The files that readers are tried on, made from bytes that were changed at random: with right hashes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from slamkern.errors import SlamkernError
from slamkern.files import load_tensors, save_tensors, write_checked
from slamkern.reading import parse_json

CUT = b"\n====\n"  # between the files of a reader that reads several


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def checked(path: Path, data: bytes, **also: Any) -> Path:
    """``data`` as a JSON object that bears its hash; as they are where they are no object."""
    with suppress(SlamkernError, ValueError, OverflowError):
        values = parse_json(data, "")
        if isinstance(values, dict):
            write_checked(path, {**{name: value for name, value in values.items() if name != "sha256"}, **also})
            return path
    return put(path, data)


def tensors(path: Path, data: bytes) -> Path:
    """A safetensors file with right hashes from ``{"tensors": {name: [dtype, shape, value]}, "metadata": {...}}``."""
    with suppress(SlamkernError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError):
        values = parse_json(data, "")
        made = {str(name): _tensor(*entry) for name, entry in values["tensors"].items()}
        save_tensors(path, made, values["metadata"])
        return path
    return put(path, data)


def _tensor(dtype: str, shape: list[int], value: Any) -> torch.Tensor:
    if torch.Size(shape).numel() > 2**20:
        raise ValueError("too large to be made thousands of times")
    return torch.full(shape, value, dtype=getattr(torch, dtype))


def described(path: Path) -> bytes:
    """What `tensors` makes a file like this one from, each tensor of one value."""
    found, metadata = load_tensors(path, "tensor")
    entries = {
        name: [str(tensor.dtype)[6:], list(tensor.shape), tensor.flatten()[0].item()] for name, tensor in found.items()
    }
    metadata.pop("sha256", None)
    return json.dumps({"tensors": entries, "metadata": metadata}).encode()


def parts(data: bytes, number: int) -> list[bytes]:
    return (data.split(CUT) + [b""] * number)[:number]
