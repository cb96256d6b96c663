"""What is compiled without a GPU: every kernel and feature at the tile sizes of production (see compile_kernels.py).

Matrices have 4096 tokens and rows of a multiple of 16 elements.
"""

from dataclasses import dataclass, field
from typing import Any

from slamkern.kernels import (
    fp8,
    glu,
    glu_stats,
    launch,
    rmsnorm,
    row_plan,
)  # fmt: skip

_STATS = {
    **dict.fromkeys(("order_ptr", "parts_ptr", "arrived_ptr"), "*i32"),
    **dict.fromkeys(("count_ptr", "active_ptr"), "*i64"),
    **dict.fromkeys(("mean_ptr", "m2_ptr"), "*fp64"),
    "partials_ptr": "*fp32",
}


@dataclass(frozen=True)
class Case:
    """One compilation: arguments that are absent are None, those neither pointers nor constants are int32."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    tile: launch.Strip
    absent: tuple[str, ...] = ()
    expect: tuple[str, ...] = field(default=())


def _pointers(dtype: str, *names: str) -> dict[str, str]:
    return {f"{name}_ptr": f"*{dtype}" for name in names}


def _elementwise() -> dict[str, Case]:
    wide = ("vector_loads", "no_narrow_loads", "vector_stores")
    four = {2: launch.strip(11008, 2, 4, 4), 4: launch.strip(11008, 4, 4, 4)}
    two = {2: launch.strip(11008, 2, 4, 2), 4: launch.strip(11008, 4, 4, 2)}
    forward, backward, stats = (
        glu.swiglu_kernel,
        glu.swiglu_backward_kernel,
        glu_stats.swiglu_stats_kernel,
    )
    matrices, grads = ("gate", "up", "hidden"), ("grad", "gate", "up", "grad_gate", "grad_up", "hidden")
    gate = {"OBSERVE": "gate", "COLUMNS": row_plan.COLUMNS}
    hidden = {"OBSERVE": "hidden", "COLUMNS": row_plan.COLUMNS}
    row = launch.whole_rows(4096, 2)
    norm = {**_pointers("bf16", "x", "weight", "y", "grad", "dx"), **_pointers("fp32", "rstd"), "eps": "fp32"}
    return {
        "swiglu bf16 silu": Case(forward, _pointers("bf16", *matrices), {"ACTIVATION": "silu"}, four[2], (), wide),
        "swiglu fp32 gelu plain": Case(
            forward, _pointers("fp32", *matrices), {"ACTIVATION": "gelu"}, four[4], ("up_ptr",), wide
        ),
        "swiglu_backward bf16 silu": Case(
            backward, _pointers("bf16", *grads), {"ACTIVATION": "silu"}, four[2], ("hidden_ptr",), wide
        ),
        "swiglu_backward fp32 silu": Case(
            backward,
            _pointers("fp32", *grads),
            {"ACTIVATION": "silu"},
            four[4],
            ("hidden_ptr",),
            (*wide, "rounded_division"),
        ),
        "swiglu_backward bf16 silu lowest": Case(
            backward, _pointers("bf16", *grads), {"ACTIVATION": "silu"}, four[2], ("grad_gate_ptr",), wide
        ),
        "swiglu_backward bf16 gelu hidden": Case(
            backward, _pointers("bf16", *grads), {"ACTIVATION": "gelu"}, four[2], (), wide
        ),
        "swiglu_backward fp16 gelu_tanh plain": Case(
            backward, _pointers("fp16", *grads), {"ACTIVATION": "gelu_tanh"}, four[2], ("up_ptr", "grad_up_ptr"), wide
        ),
        "swiglu_stats bf16 silu gate": Case(
            stats, _pointers("bf16", *matrices) | _STATS, {"ACTIVATION": "silu"} | gate, two[2], (), wide
        ),
        "swiglu_stats bf16 gelu hidden": Case(
            stats, _pointers("bf16", *matrices) | _STATS, {"ACTIVATION": "gelu"} | hidden, two[2], (), wide
        ),
        "swiglu_stats bf16 gelu_tanh hidden": Case(
            stats, _pointers("bf16", *matrices) | _STATS, {"ACTIVATION": "gelu_tanh"} | hidden, two[2], (), wide
        ),
        "swiglu_stats fp32 silu gate": Case(
            stats, _pointers("fp32", *matrices) | _STATS, {"ACTIVATION": "silu"} | gate, two[4], (), wide
        ),
        "rms_norm bf16": Case(rmsnorm.rms_norm_kernel, norm, {"STYLE": "llama"}, row, (), wide),
        "rms_norm_backward bf16": Case(rmsnorm.rms_norm_backward_kernel, norm, {"STYLE": "llama"}, row, (), wide),
    }


def _quantization() -> dict[str, Case]:
    types = {**_pointers("bf16", "x"), **_pointers("fp32", "multiplier", "scale"), **_pointers("fp8e4nv", "values")}
    kernel, fast = fp8.quantize_rows_kernel, ("vector_loads", "no_narrow_loads")
    # Inputs of a Linear as they are, gradients times a weight's scales; the widest row is a down projection's input.
    return {
        "quantize_rows bf16": Case(kernel, types, {}, launch.whole_rows(4096, 2), ("multiplier_ptr",), fast),
        "quantize_rows bf16 multiplier": Case(kernel, types, {}, launch.whole_rows(4096, 2), (), fast),
        "quantize_rows bf16 wide multiplier": Case(kernel, types, {}, launch.whole_rows(14336, 2), (), fast),
    }


# Kernels that a target cannot have, and why: they are left out of its cases.
IMPOSSIBLE = {80: {"quantize_rows": "sm_80 has no e4m3 numbers"}}


def cases(target: int) -> dict[str, Case]:
    """Every kernel and feature at the tile sizes of production, for compute capability ``target / 10``."""
    every = _elementwise() | _quantization()
    return {name: case for name, case in every.items() if name.split()[0] not in IMPOSSIBLE.get(target, {})}
