"""What a training writes: lines of ``metrics.jsonl``, ``held_out.json``, deltas and the optimizer's state."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from slamkern.errors import DamagedFileError, SlamkernError
from slamkern.files import load_tensors, read_checked, unsealed
from slamkern.reading import parse_json, read_text
from slamkern.schemas.check import Count, Digest, Index, Name, NotNegative, Positive, Schema, check

DELTA = "delta.safetensors"
FORMAT, STATE = "slamkern-delta", "training-state"


class Step(Schema):
    """A line of ``metrics.jsonl``."""

    step: Count
    loss: float
    lr: NotNegative
    grad_norm: NotNegative
    tokens: Count
    supervised_tokens: Count
    tokens_per_second: Positive
    peak_memory_bytes: Index
    padding_share: Annotated[float, Field(ge=0, lt=1)]


class HeldOut(Schema):
    """Held-out loss (nats a token); ``after`` when the training is finished."""

    before: NotNegative
    after: NotNegative | None = None


class DeltaMetadata(Schema):
    """Beside the trained tensors; ``made_from`` where the delta was made of others.

    ``frozen_weights``: digests of the base model, of trained weights too, as they were before (not in old ones).
    """

    slamkern_version: str
    format: Literal["slamkern-delta"]
    signature: Name
    base_model: str
    frozen_weights: dict[Name, Digest]
    made_from: list[dict[str, Any]] | None = None


class StateMetadata(Schema):
    """Beside the optimizer's state in a checkpoint."""

    slamkern_version: str
    format: Literal["training-state"]
    step: Count
    fingerprint: Name


def read_steps(path: Path, limit: int | None = None, *, torn: bool = False) -> list[dict[str, Any]]:
    """The first ``limit`` lines of metrics.jsonl as they were written: steps from 1 on without a gap.

    torn: leave out a last line without an end, which a killed run was writing.
    """
    rows: list[dict[str, Any]] = []
    text = read_text(path)
    for number, line in enumerate((text[: text.rfind("\n") + 1] if torn else text).splitlines()[:limit], start=1):
        place = f"{path}:{number}"
        row = unsealed(parse_json(line, place), place)
        check(Step, line, place)
        if row["step"] != number:
            raise DamagedFileError(f"{place}: step {row['step']} where step {number} should be")
        rows.append(row)
    return rows


def read_held_out(path: Path) -> dict[str, float]:
    """What held_out.json was written with."""
    values: dict[str, float] = read_checked(path)
    check(HeldOut, json.dumps(values), str(path))
    return values


def read_delta(folder: str | Path) -> tuple[Path, dict[str, Tensor], DeltaMetadata]:
    """(path, tensors, metadata) of a delta: its folder or the file. SlamkernError names the file where it is none."""
    path = Path(folder) / DELTA if Path(folder).is_dir() else Path(folder)
    tensors, metadata = load_tensors(path, "delta")
    if metadata.get("format") != FORMAT:
        raise SlamkernError(f"{path} is not a delta, but {metadata.get('format', 'another slamkern file')}")
    return path, tensors, check(DeltaMetadata, json.dumps(metadata), f"{path} is not a delta")


def read_state(path: Path) -> tuple[dict[str, Tensor], StateMetadata]:
    """(tensors, metadata) of the optimizer's state in a checkpoint."""
    tensors, metadata = load_tensors(path, "training state")
    return tensors, check(StateMetadata, json.dumps(metadata), f"{path} is not a training state")
