"""The training profile: variants of a step in turns over the same pairs, their cost side by side, their losses a check.

On a CPU all variants live at once and take each step in turns (in an order that rotates), so that a slow moment of the
machine hits all of them and ratios hold. On CUDA, where several 7B models do not fit, one variant takes its steps after
another, and all of them do so ``repeats`` times. The first step of each is not timed: its FLOPs, its memory and its
kernel launches are counted instead; a variant that did not launch the kernels of its name has no number.

``tokens_per_second`` is the median over the steps and counts real tokens, never padding. ``against_slamkern`` is the
median over the steps of how many times longer than slamkern a variant took for the same pairs; ``_low`` and ``_high``
are the extremes of both. ``utilization`` is the share of the measured GEMM rate that the executed FLOPs reach,
``useful_utilization`` that of the minimum FLOPs.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from slamkern.bench.launches import kernel_events, launches_of
from slamkern.bench.runner import Runner
from slamkern.bench.variants import KERNELS, VARIANTS, Settings, Variant
from slamkern.bench.workload import Builder, Workload
from slamkern.data.packing import Example
from slamkern.errors import SlamkernError
from slamkern.training.batches import supervised_tokens
from slamkern.training.step_cost import Dimensions, flop_counter, peak_growth

# Greatest relative difference of two exact variants' losses: reordered sums, amplified by AdamW's division.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
_T = TypeVar("_T")
Row = dict[str, Any]
Progress = Callable[[str], None]


@dataclass
class _Measured:
    """What the steps of one variant have told so far; ``seconds`` by repeat and number of the step."""

    variant: Variant
    failure: str | None = None
    losses: list[float] = field(default_factory=list)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    flops: int = 0
    peak_bytes: int = 0
    trained: int = 0
    positions: int = 0
    launches: dict[str, int] | None = None


def gemm_ceiling(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of a large square product here and now, sustained: a burst runs at clocks that no step can hold."""
    seconds = 1.0 if device.type == "cuda" else 0.2
    side = side or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    count = 1  # enough calls for so many seconds in one go; the first tries are a warm-up

    def products() -> None:
        for _ in range(count):
            torch.mm(a, b, out=product)

    while True:
        _, taken = _timed(products, device)
        if taken >= seconds:
            return 2 * side**3 * count / taken
        count = max(count + 1, math.ceil(1.2 * count * seconds / taken))


def profile(
    build: Builder,
    work: Workload,
    settings: Settings,
    *,
    seconds: float = math.inf,
    progress: Progress = lambda _: None,
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
    chosen = [VARIANTS[name] for name in settings.variants]
    measured = [_Measured(variant, variant.unavailable_reason(device)) for variant in chosen]
    able = [entry for entry in measured if entry.failure is None]
    # What the others are compared with comes first, in case the time runs out.
    one_by_one = sorted(([entry] for entry in able), key=lambda group: group[0].variant.name != "slamkern")
    groups = [(turn, group) for turn in range(settings.repeats) for group in one_by_one]
    first = work.steps[0]
    lengths = [len(example.input_ids) for example in first]
    minimum = dimensions.minimum_flops(lengths, supervised_tokens(first), settings.layers)
    for entry in able:
        entry.flops = entry.variant.uncounted_flops(dimensions, sum(lengths), min(settings.layers))
    ceilings = [gemm_ceiling(device, dtype)]

    def rows() -> list[Row]:
        return [_row(entry, measured, work, minimum, statistics.median(ceilings)) for entry in measured]

    for number, (turn, group) in enumerate(groups if _by_turns(device) else [(0, able)]):
        if number and time.monotonic() > deadline:
            break
        for step in _steps(group, build, work, settings, turn, progress):
            ceilings.append(gemm_ceiling(device, dtype))
            if step:
                yield rows()
                if time.monotonic() > deadline:
                    break
        gc.collect()  # a model is part of cycles, and the next one may need its memory
    yield rows()


def _by_turns(device: torch.device) -> bool:
    """Whether only one model fits at a time."""
    return device.type == "cuda"


def _steps(
    group: Sequence[_Measured], build: Builder, work: Workload, settings: Settings, turn: int, progress: Progress
) -> Iterator[int]:
    """Take every step with every variant of a group; yields the number of a step that all have taken."""
    runners: list[tuple[_Measured, Runner]] = []
    try:
        for entry in group:
            try:
                if entry.failure is None:
                    runners.append((entry, Runner(entry.variant, build(), settings)))
            except torch.OutOfMemoryError:
                entry.failure = "out of memory: the weights do not fit"
        for number, examples in enumerate(work.steps):
            place = number % max(1, len(runners))
            for entry, runner in runners[place:] + runners[:place]:
                if entry.failure is not None:
                    continue
                try:
                    loss = _take(entry, runner, examples, turn, number)
                    progress(f"step {number + 1}/{len(work.steps)} {entry.variant.name}: loss {loss:.4f}")
                except torch.OutOfMemoryError:
                    entry.failure = f"out of memory in step {number + 1}"
            yield number
    finally:
        for _, runner in runners:
            runner.close()


def _take(entry: _Measured, runner: Runner, examples: Sequence[Example], turn: int, number: int) -> float:
    """One step, counted if it is the first and else timed; returns its loss."""
    if number or turn:

        def step() -> float:
            loss = runner.backward(examples)
            runner.update()
            return loss

        loss, taken = _timed(step, runner.model.device)
        if number:
            entry.seconds[turn, number] = taken
    else:
        loss = _count(entry, runner, examples)
    if not turn:
        entry.losses.append(loss)
        entry.positions += runner.positions(examples)
    return loss


def _count(entry: _Measured, runner: Runner, examples: Sequence[Example]) -> float:
    """Take the first step and note what it needed; its peak is in the backward, before there is optimizer state."""
    device = runner.model.device
    with kernel_events(device) as events, flop_counter() as counter, peak_growth(device) as grown:
        loss = runner.backward(examples)
    runner.update()
    entry.flops += counter.get_total_flops()
    entry.peak_bytes = runner.resident_bytes() + grown[0]
    entry.trained = runner.trained_parameters
    package = KERNELS.get(entry.variant.engine)
    entry.launches = launches_of(package, events) if package else None
    if entry.launches == {}:
        entry.failure = f"no kernel of {package} was launched, so the number would be of something else"
    return loss


def _timed(function: Callable[[], _T], device: torch.device) -> tuple[_T, float]:
    """What the function returned, and the seconds it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started


def _row(entry: _Measured, measured: Sequence[_Measured], work: Workload, minimum: int, ceiling: float) -> Row:
    """minimum: FLOPs of the first step at least; ceiling: FLOP/s of a large product."""
    row: Row = {"variant": entry.variant.name, "layout": entry.variant.layout}
    if entry.failure is not None or not entry.seconds:
        return row | {"absent": entry.failure or "no time was left"}
    tokens = [sum(len(example.input_ids) for example in step) for step in work.steps]
    own = next((other.seconds for other in measured if other.variant.name == "slamkern" and not other.failure), {})
    ratios = [taken / own[key] for key, taken in entry.seconds.items() if key in own]
    rates = [tokens[number] / taken for (_, number), taken in entry.seconds.items()]
    rate = statistics.median(rates)
    # FLOPs were counted in the first step; the others are of nearly the same size.
    flops = entry.flops / tokens[0]
    return row | {
        "tokens_per_second": rate,
        "tokens_per_second_low": min(rates),
        "tokens_per_second_high": max(rates),
        "step_seconds": statistics.median(entry.seconds.values()),
        "against_slamkern": statistics.median(ratios) if ratios else None,
        "against_slamkern_low": min(ratios, default=None),
        "against_slamkern_high": max(ratios, default=None),
        "timed_steps": len(entry.seconds),
        "padding_share": 1 - sum(tokens[: len(entry.losses)]) / entry.positions,
        "peak_memory_bytes": entry.peak_bytes,
        "trained_parameters": entry.trained,
        "gigaflops_per_token": flops / 1e9,
        "flops_vs_minimum": entry.flops / minimum,
        "utilization": flops * rate / ceiling,
        "useful_utilization": minimum / tokens[0] * rate / ceiling,
        "ceiling_tflops": ceiling / 1e12,
        "kernel_launches": entry.launches,
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
