"""Times of alternatives, measured side by side: medians that can be compared on a machine that is never quiet.

In every round each case runs once, in an order that rotates, so that a slow moment hits all of them. What a case
needs first (a forward before its backward) is prepared outside the timed region.

On CUDA a run is timed with events. Before it the L2 cache is filled by reading other memory (writing would leave dirty
lines, which are evicted inside the timed region), and the device is kept busy for about a
millisecond so that the host is ahead and launches cost nothing. On a CPU it is timed with the host's clock; the
matrices of a layer exceed its L2 cache, and nothing is flushed.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_MIN_ROUNDS = 3
_BUSY_CYCLES = 2_000_000  # about 1 ms at the 1.98 GHz of an H100


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Case:
    """``run`` is timed and gets what ``prepare``, which is not timed, returned."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = _nothing


@dataclass(frozen=True)
class Timing:
    """Median and quartiles in milliseconds over ``rounds`` runs."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


def interleaved(
    cases: Mapping[str, Case], device: torch.device, *, rounds: int = 20, warmup: int = 2, seconds: float = 60.0
) -> dict[str, Timing]:
    """Times of all cases over ``rounds`` common rounds, fewer (but at least three) once ``seconds`` have passed."""
    timed = _CudaTimer(device) if device.type == "cuda" else _host_ms
    names = list(cases)
    for name in names * warmup:
        timed(cases[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= _MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for offset in range(len(names)):
            name = names[(number + offset) % len(names)]
            times[name].append(timed(cases[name]))
    return {name: summarize(values) for name, values in times.items()}


def summarize(values: list[float]) -> Timing:
    """The median and quartiles of times in milliseconds."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(median, low, high, len(values))


def _host_ms(case: Case) -> float:
    state = case.prepare()
    started = time.perf_counter()
    result = case.run(state)
    elapsed = time.perf_counter() - started
    # Freed after the clock stops: giving pages back is not part of the op, and every case is treated alike.
    del result, state
    return elapsed * 1e3


class _CudaTimer:
    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.zeros(l2_bytes, device=device)  # four times the cache
        self._device = device

    def __call__(self, case: Case) -> float:
        state = case.prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.sum()
        torch.cuda._sleep(_BUSY_CYCLES)
        start.record()
        case.run(state)
        end.record()
        torch.cuda.synchronize(self._device)
        return float(start.elapsed_time(end))
