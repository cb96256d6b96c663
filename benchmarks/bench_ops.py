"""The operations under pytest-benchmark, with its filters, comparisons and JSON: ``pytest benchmarks/bench_ops.py``.

Small enough for a minute on two cores; the tables of the README come from ``python -m benchmarks.kernels``.
"""

from typing import Any

import pytest
import torch

from benchmarks.kernels import operations
from benchmarks.operations import Operation, Workload
from benchmarks.providers import COMPILE, PROVIDERS, Absent
from benchmarks.shapes import SHAPES

pytest.importorskip("pytest_benchmark")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS = 8192 if DEVICE.type == "cuda" else 256
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
SHAPE = SHAPES[-1]  # SmolLM2: the smallest


def _all() -> dict[str, Operation]:
    found = operations(Workload(SHAPE, TOKENS, TOKENS, DTYPE, DEVICE))
    return {" ".join(str(part) for part in (op.name, op.languages, op.layout) if part is not None): op for op in found}


@pytest.fixture(scope="module")
def measured() -> dict[str, Operation]:
    torch.manual_seed(0)
    return _all()


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != COMPILE])
@pytest.mark.parametrize("name", sorted(_all()))
def test_operation(name: str, provider: str, measured: dict[str, Operation], benchmark: Any) -> None:
    case = measured[name].cases[provider]
    if isinstance(case, Absent):
        pytest.skip(f"{provider}: {case}")

    def run(state: Any) -> None:
        case.run(state)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = name
    benchmark.pedantic(run, setup=lambda: ((case.prepare(),), {}), rounds=10, warmup_rounds=2)
