"""How a training step scales: one property varied at a time, slamkern beside transformers on the same rows.

Sequences are random ids of one length, so that nothing else changes with the property; both variants are packed, so
what is compared is everything but padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from slamkern.bench.step_profile import Row, profile
from slamkern.bench.variants import Settings
from slamkern.bench.workload import SHAPES, even_lengths, shape_builder

VARIANTS = ("hf_freeze_packed", "slamkern")
CUDA_VARIANTS = (*VARIANTS, "slamkern_fp8")  # a CPU only emulates it


@dataclass(frozen=True)
class Point:
    """One step: ``count`` trained layers from ``first`` on, ``tokens`` in sequences of ``length``."""

    shape: str
    tokens: int
    length: int = 128
    count: int = 6
    first: int = 0

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.first, self.first + self.count))


@dataclass(frozen=True)
class Axes:
    """The base of the table, and the values that each property takes."""

    base: Point
    tokens: Sequence[int]
    length: Sequence[int]
    count: Sequence[int]
    first: Sequence[int]
    shape: Sequence[str]


def axes_for(device: torch.device, *, dry: bool = False) -> Axes:
    """Values that make sense on this device: 7B and up in bfloat16 on CUDA, 100M on a CPU."""
    if dry:
        return Axes(Point("tiny", 64, 32, 2), (64,), (16,), (1,), (2,), ("tiny",))
    if device.type == "cuda":
        base = Point("Llama-2-7B", 8192, 256)
        sizes = ("SmolLM2-135M", "Llama-2-7B", "Llama-3-8B", "Llama-2-13B")
        return Axes(base, (2048, 4096, 8192, 16384), (128, 256, 1024, 4096), (1, 6, 16, 32), (0, 10, 20, 26), sizes)
    base = Point("Llama-100M", 512)
    return Axes(base, (256, 512, 1024), (64, 128, 512), (1, 6, 12), (0, 3, 6), ("Llama-100M", "SmolLM2-135M"))


def points(axes: Axes) -> Iterator[tuple[str, Any, Point]]:
    """(property, its value, the step) for every row of the table."""
    names = {"tokens": "tokens a step", "length": "sequence length", "count": "trained layers", "first": "lowest layer"}
    for field, name in (names | {"shape": "model"}).items():
        for value in getattr(axes, field):
            yield name, value, replace(axes.base, **{field: value})


def scaling(
    device: torch.device,
    dtype: torch.dtype,
    axes: Axes,
    *,
    steps: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Row]]:
    """The rows of one point after another, a row a variant."""
    variants = CUDA_VARIANTS if device.type == "cuda" else VARIANTS
    for name, value, point in points(axes):
        work = even_lengths(point.length, point.tokens, SHAPES[point.shape][0], steps=steps)
        packed_tokens = max(point.tokens, point.length)
        settings = Settings(layers=point.layers, packed_tokens=packed_tokens, variants=variants)
        progress(f"{name} {value}")
        *_, rows = profile(shape_builder(point.shape, device, dtype), work, settings)
        yield [{"property": name, "value": value, "shape": point.shape, "tokens": point.tokens} | row for row in rows]
