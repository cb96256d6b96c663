"""Optional: tile sizes chosen by timing on the device at hand, with ``SLAMKERN_AUTOTUNE=1`` in the environment.

Without it launch settings are the pure functions of launch.py. With it the first call of a kernel for a new kind of
problem times a few tiles on its own tensors; the fastest serves the process, and later ones through
``$XDG_CACHE_HOME/slamkern/tiles.json`` (``~/.cache`` where that is not set).

A kernel that is timed runs many times. So only those are tuned that write plain functions of their inputs into fresh
tensors, never one that accumulates; and nothing is timed while a CUDA graph is captured.
"""

import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
import triton
from triton.runtime.errors import OutOfResources

from slamkern.errors import SlamkernError
from slamkern.files import write_json

VARIABLE = "SLAMKERN_AUTOTUNE"
_ROUNDS = 5
Tile = TypeVar("Tile")  # launch.Strip or launch.GemmTile


class Tuner:
    """The fastest tile of each kind of problem, remembered in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, int | None]] = {}
        if file.exists():
            try:
                self._known = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SlamkernError(f"{file} cannot be read: {error}; delete it to tune again") from error

    def choose(self, kind: str, tiles: Sequence[Tile], run: Callable[[Tile], object], device: torch.device) -> Tile:
        """The tile of ``tiles`` with which ``run`` is fastest for problems of this ``kind``."""
        key = " ".join((_name(device), f"triton {triton.__version__}", kind))
        known = next((tile for tile in tiles if asdict(tile) == self._known.get(key)), None)  # type: ignore[call-overload]
        if known is not None:
            return known
        times = [_seconds(functools.partial(run, tile), device) for tile in tiles]
        best = tiles[times.index(min(times))]
        self._known[key] = asdict(best)  # type: ignore[call-overload]
        write_json(self._file, self._known)
        return best


def tuned(kind: str, tiles: Sequence[Tile], run: Callable[[Tile], object], device: torch.device) -> Tile:
    """The first of ``tiles``, or with ``SLAMKERN_AUTOTUNE=1`` the fastest; see the module docstring.

    kind: what the choice depends on (kernel, widths, dtype); run: launches the kernel with a tile.
    """
    wanted = os.environ.get(VARIABLE, "0")
    if wanted not in ("0", "1"):
        raise SlamkernError(f"{VARIABLE}={wanted!r}; use 1 (time the tiles) or 0")
    if wanted == "0" or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return tiles[0]
    return _tuner().choose(kind, tiles, run, device)


def size_class(tokens: int) -> int:
    """Tokens to the next power of two: problems of about one size share a choice."""
    return 1 << max(0, tokens - 1).bit_length()


@functools.cache
def _tuner() -> Tuner:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Tuner(cache / "slamkern" / "tiles.json")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of a few runs, after one that compiles; infinite for a tile that the device has no room for."""
    try:
        run()
    except OutOfResources:
        return math.inf
    times = []
    for _ in range(_ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
