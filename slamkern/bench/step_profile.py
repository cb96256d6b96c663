"""The training profile: variants of a step in turns over the same pairs, their cost side by side, their losses a check.

On a CPU all variants live at once and take each step in turns (in an order that rotates), so that a slow moment of the
machine hits all of them and ratios hold; on CUDA, where several 7B models do not fit, one variant after another. The
first step of each is not timed: its FLOPs and its memory are counted instead.

``tokens_per_second`` is the median over the steps and counts real tokens, never padding. ``against_slamkern`` is the
median over the steps of how many times longer than slamkern a variant took for the same pairs. ``utilisation`` is the
share of the measured GEMM rate that the executed FLOPs reach, ``useful_utilisation`` that of the least possible FLOPs.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slamkern.bench.variants import VARIANTS, Runner, Variant, absent
from slamkern.bench.workload import Builder, Workload
from slamkern.data.packing import Example
from slamkern.errors import SlamkernError
from slamkern.training.batches import supervised_tokens
from slamkern.training.step_cost import Dimensions, flop_counter, peak_growth

# Greatest relative difference of two exact variants' losses: reordered sums, amplified by AdamW's division.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """layers: the trained ones. batch, at_once: sequences padded together and computed together; row: packed tokens."""

    layers: Sequence[int]
    batch: int
    at_once: int | None = None  # None: the whole batch
    row: int = 4096
    rate: float = 1e-3
    variants: Sequence[str] = tuple(VARIANTS)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise SlamkernError(f"unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")


@dataclass
class _Measured:
    """What the steps of one variant have told so far."""

    variant: Variant
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    peak_bytes: int = 0
    trained: int = 0
    positions: int = 0
    failure: str | None = None


def gemm_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product here and now, the best of five."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return max(2 * side**3 / _seconds(lambda: a @ b, device) for _ in range(5))


def profile(
    build: Builder,
    work: Workload,
    settings: Settings,
    *,
    seconds: float = math.inf,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Row]]:
    """After each step that all variants of a group have taken: a row for every variant, in the order of ``settings``.

    A variant that cannot run, or has not yet, has a row that says so. The last list is the result; ``seconds`` ends the
    profile early, after a timed step or before the next group. Raises SlamkernError for fewer than two steps.
    """
    if len(work.steps) < 2:
        raise SlamkernError(f"{len(work.steps)} steps; the first is not timed, so at least 2 are needed")
    deadline = time.monotonic() + seconds
    model = build()
    device, dtype, dimensions = model.device, model.dtype, Dimensions.of(model.config)
    del model
    measured = [_Measured(VARIANTS[name], failure=absent(VARIANTS[name], device)) for name in settings.variants]
    able = [entry for entry in measured if entry.failure is None]
    # What the others are compared with comes first, in case the time runs out.
    one_by_one = sorted(([entry] for entry in able), key=lambda group: group[0].variant.name != "slamkern")
    first = work.steps[0]
    lengths = [len(example.input_ids) for example in first]
    least = dimensions.minimum_flops(lengths, supervised_tokens(first), settings.layers)
    ceilings = [gemm_ceiling(device, dtype)]

    def rows() -> list[Row]:
        return [_row(entry, measured, work, least, statistics.median(ceilings)) for entry in measured]

    for turn, group in enumerate(one_by_one if device.type == "cuda" else [able]):
        if turn and time.monotonic() > deadline:
            break
        for number in _steps(group, build, work, settings, progress):
            ceilings.append(gemm_ceiling(device, dtype))
            if number:
                yield rows()
                if time.monotonic() > deadline:
                    break
        gc.collect()  # a model is part of cycles, and the next one may need its memory
    yield rows()


def _steps(
    group: list[_Measured],
    build: Builder,
    work: Workload,
    settings: Settings,
    progress: Callable[[str], None],
) -> Iterator[int]:
    """Take every step with every variant of a group; yields the number of a step that all have taken."""
    options = {name: getattr(settings, name) for name in ("rate", "batch", "row", "at_once")}
    runners: list[tuple[_Measured, Runner]] = []
    try:
        for entry in group:
            try:
                runners.append((entry, Runner(entry.variant, build(), settings.layers, **options)))
            except torch.OutOfMemoryError:
                entry.failure = "out of memory: the weights do not fit"
        for number, examples in enumerate(work.steps):
            turn = number % max(1, len(runners))
            for entry, runner in runners[turn:] + runners[:turn]:
                if entry.failure is not None:
                    continue
                try:
                    _take(entry, runner, examples, first=number == 0)
                    progress(f"step {number + 1}/{len(work.steps)} {entry.variant.name}: loss {entry.losses[-1]:.4f}")
                except torch.OutOfMemoryError:
                    entry.failure = f"out of memory in step {number + 1}"
            yield number
    finally:
        for _, runner in runners:
            runner.close()


def _take(entry: _Measured, runner: Runner, examples: Sequence[Example], *, first: bool) -> None:
    device = runner.model.device
    entry.positions += runner.positions(examples)
    if first:
        with flop_counter() as counter, peak_growth(device) as grown:
            entry.losses.append(runner.backward(examples))
        runner.update()
        entry.flops = counter.get_total_flops()
        entry.peak_bytes = runner.resident_bytes() + grown[0]
        entry.trained = runner.trained_parameters
        return

    def step() -> None:
        entry.losses.append(runner.backward(examples))
        runner.update()

    entry.seconds.append(_seconds(step, device))


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _row(entry: _Measured, measured: Sequence[_Measured], work: Workload, least: int, ceiling: float) -> Row:
    """least: FLOPs of the first step at least; ceiling: FLOP/s of a large product."""
    row: Row = {"variant": entry.variant.name, "layout": entry.variant.layout}
    if entry.failure is not None or not entry.seconds:
        return row | {"absent": entry.failure or "no time was left"}
    tokens = [sum(len(example.input_ids) for example in step) for step in work.steps[: len(entry.losses)]]
    own = next((other.seconds for other in measured if other.variant.name == "slamkern" and not other.failure), [])
    ratios = [mine / its for mine, its in zip(entry.seconds, own, strict=False)]
    rate = statistics.median(count / seconds for count, seconds in zip(tokens[1:], entry.seconds, strict=True))
    # FLOPs were counted in the first step; the others are of nearly the same size.
    flops = entry.flops / tokens[0]
    return row | {
        "tokens_per_second": rate,
        "step_seconds": statistics.median(entry.seconds),
        "against_slamkern": statistics.median(ratios) if ratios else None,
        "padding_share": 1 - sum(tokens) / entry.positions,
        "peak_memory_bytes": entry.peak_bytes,
        "trained_parameters": entry.trained,
        "gigaflops_per_token": flops / 1e9,
        "flops_vs_least": entry.flops / least,
        "utilisation": flops * rate / ceiling,
        "useful_utilisation": least / tokens[0] * rate / ceiling,
        "ceiling_tflops": ceiling / 1e12,
        "exact": entry.variant.exact,
        "losses": entry.losses,
    }


def largest_difference(rows: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """Greatest relative difference between the loss curves of exact variants, and between which two; 0 for fewer."""
    curves = [(row["variant"], row["losses"]) for row in rows if row.get("exact")]
    worst = (0.0, "fewer than two exact variants")
    for first, (name, losses) in enumerate(curves):
        for other, others in curves[first + 1 :]:
            difference = max(abs(a - b) / abs(a) for a, b in zip(losses, others, strict=False))
            worst = max(worst, (difference, f"{name} and {other}"))
    return worst
