"""Microbenchmarks of the ops for every shape and provider: median time, GB/s or TFLOP/s, share of the ceiling.

The ceiling is what ``benchmarks.ceilings`` measured on this device: copy bandwidth for the memory-bound ops, the rate
of a large product in the same dtype for the others. A provider that cannot run here has a row that says why.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.operations import Operation, Workload, elementwise, products
from benchmarks.providers import COMPILE, KERNELS, PROVIDERS, TORCH, WASTED_PRODUCTS, Absent
from benchmarks.results import Row
from benchmarks.shapes import SHAPES, TINY, Shape
from benchmarks.stage import Stage, show
from benchmarks.timing import Case, interleaved
from slamkern.bench.launches import kernel_events, launches_of

COLUMNS = ("op", "languages", "layout", "provider", "shape", "tokens", "median_ms", "gbps", "tflops", "share",
           "wasted_products")  # fmt: skip
_OPERATIONS_A_SHAPE = 11
# A row with a wrong result has no time: the relative error that bfloat16 products in another order stay far below.
_WRONG = 2e-2


def workloads(stage: Stage) -> list[Workload]:
    """float32 on a CPU, where products of thousands of tokens would take minutes; bfloat16 on CUDA.

    A dry run leaves out what takes minutes whatever the shape: torch.compile, and Triton's interpreter on a CPU.
    """
    shapes: Sequence[Shape] = (TINY,) if stage.dry else SHAPES
    tokens, gemm_tokens, dtype = 4096, 128, torch.float32
    if stage.dry:
        tokens, gemm_tokens = 40, 40
    elif stage.device.type == "cuda":
        tokens, gemm_tokens, dtype = 8192, 8192, torch.bfloat16
    else:  # the quick ones first, in case the time runs out
        shapes = sorted(shapes, key=lambda shape: shape.neurons)
    slow = {COMPILE, "slamkern triton"} if stage.device.type == "cpu" else {COMPILE}
    shown = tuple(provider for provider in PROVIDERS if not (stage.dry and provider in slow))
    return [Workload(shape, tokens, gemm_tokens, dtype, stage.device, shown) for shape in shapes]


def operations(work: Workload) -> Iterator[Operation]:
    """All operations of a workload, one at a time: their inputs fill gigabytes."""
    yield from elementwise(work)
    yield from products(work)


def measure(operation: Operation, ceilings: Sequence[Row], *, rounds: int, seconds: float) -> list[Row]:
    """One row a provider."""
    ready, absent, launches = first_calls(operation)
    times = interleaved(ready, operation.workload.device, rounds=rounds, warmup=1, seconds=seconds)
    rows = []
    for provider in operation.cases:
        row = _describe(operation) | {"provider": provider, "kernel_launches": launches.get(provider)}
        if operation.name.endswith("frozen FFN backward"):
            row["wasted_products"] = WASTED_PRODUCTS.get(provider, 0)
        if provider in absent:
            rows.append(row | {"absent": absent[provider]})
            continue
        timing = times[provider]
        if operation.bound == "copy":
            rate = {"gbps": operation.bytes / timing.median_ms / 1e6}
        else:
            rate = {"tflops": operation.flops / timing.median_ms / 1e9}
        rows.append(row | asdict(timing) | rate | {"share": _share(operation, rate, ceilings)})
    return rows


def first_calls(operation: Operation) -> tuple[dict[str, Case], dict[str, str], dict[str, dict[str, int]]]:
    """Run every case (compilation happens here), hold its result against torch's and count the kernels it launches.

    Returns the cases that can be timed, why the others cannot, and the launches by name where a GPU tells them.
    """
    launches: dict[str, dict[str, int]] = {}
    ready: dict[str, Case] = {}
    absent: dict[str, str] = {}
    expected: Tensor | None = None
    for provider, case in operation.cases.items():
        if isinstance(case, Absent):
            absent[provider] = str(case)
            continue
        try:
            result = case.run(case.prepare())
        except Exception as error:  # a provider may fail in any way; the row says how
            absent[provider] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
            continue
        value = _first_tensor(result).float()
        if provider == TORCH:
            expected = value
        if expected is not None and not (off := (value - expected).norm() / expected.norm()) < _WRONG:
            absent[provider] = f"wrong result: relative error {float(off):.2g}"
            continue
        if operation.own_kernels and provider in KERNELS:
            with kernel_events(operation.workload.device) as events:
                case.run(case.prepare())
            launched = launches_of(KERNELS[provider], events)
            if launched == {}:
                absent[provider] = f"no kernel of {KERNELS[provider]} was launched"
                continue
            if launched is not None:
                launches[provider] = launched
        ready[provider] = case
    return ready, absent, launches


def _first_tensor(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else _first_tensor(result[0])


def _describe(operation: Operation) -> Row:
    work = operation.workload
    return {
        "op": operation.name,
        "languages": operation.languages,
        "layout": operation.layout,
        "shape": work.shape.name,
        "hidden": work.shape.hidden,
        "neurons": work.shape.neurons,
        "tokens": operation.tokens,
        "dtype": str(work.dtype).removeprefix("torch."),
        "bytes": operation.bytes,
        "flops": operation.flops,
    }


def _share(operation: Operation, rate: Row, ceilings: Sequence[Row]) -> float | None:
    """Part of the ceiling that was reached; None where the ceiling was not measured."""
    dtype = str(operation.workload.dtype).removeprefix("torch.")
    for row in ceilings:
        if operation.bound == row["ceiling"] == "copy":
            return float(rate["gbps"] / row["gbps"])
        if operation.bound == row["ceiling"] and row["dtype"] == dtype:
            return float(rate["tflops"] / row["tflops"])
    return None


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("kernels", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    ceilings = stage.rows_of("ceilings")
    works = workloads(stage)
    rounds = 1 if stage.dry else 30 if stage.device.type == "cuda" else 9
    left = _OPERATIONS_A_SHAPE * len(works)
    for work in works:
        for operation in operations(work):
            if stage.seconds_left <= 0:
                late = _describe(operation) | {"absent": "left out: no time was left (--minutes)"}
                stage.rows += [late | {"provider": provider} for provider in operation.cases]
            else:
                # Half of a fair share: the other half is for first calls and for making inputs.
                seconds = stage.seconds_left / max(1, left) / 2
                stage.rows += measure(operation, ceilings, rounds=rounds, seconds=seconds)
            left -= 1
        stage.save()
    stage.save()
    show(f"ops on {stage.device}", [row for row in stage.rows if "absent" not in row], COLUMNS)
    absent = Counter((row["provider"], row["absent"]) for row in stage.rows if "absent" in row)
    for (provider, reason), count in absent.items():
        print(f"no number of {provider} in {count} rows: {reason}")
    broken = any(who.startswith("slamkern") and why.startswith(("failed", "wrong", "no kernel")) for who, why in absent)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
