"""Compile every Triton kernel for a GPU that need not be there, and print what the machine code needs, as JSON.

    python tests/compile_kernels.py 90            measure for sm_90
    python tests/compile_kernels.py --write       measure for all targets and raise kernel_budgets.json to it

Runs on its own, not under pytest: the tests set TRITON_INTERPRET, and an interpreted kernel cannot be compiled.
Tile sizes come from slamkern.kernels.launch, so that what is compiled here is what is launched there, for matrices
of 4096 tokens and rows of a multiple of 16 elements (the specialisation Triton makes at run time).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a test that imports this to read it has chosen the interpreter for its whole process
    os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slamkern.kernels import dual_gemm, elementwise, launch, moments, norms, rotation, statistics, weight_grad

TARGETS = (80, 90, 100)
BUDGETS = Path(__file__).with_name("kernel_budgets.json")
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_USAGE = (_TOOLS / "cuobjdump", "--dump-resource-usage")
_CODE = (_TOOLS / "nvdisasm", "--print-code", "--no-dataflow")  # half the time of cuobjdump -sass
_STATS = {"language_ptr": "*i32", "count_ptr": "*i32", "mean_ptr": "*fp32", "m2_ptr": "*fp32", "active_ptr": "*i32"}


@dataclass(frozen=True)
class Case:
    """One compilation: arguments that are absent are None, those neither pointers nor constants are int32."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    tile: launch.Strip | launch.GemmTile
    absent: tuple[str, ...] = ()
    expect: tuple[str, ...] = field(default=())


def _pointers(dtype: str, *names: str) -> dict[str, str]:
    return {f"{name}_ptr": f"*{dtype}" for name in names}


def _elementwise() -> dict[str, Case]:
    wide = ("vector_loads", "no_narrow_loads", "vector_stores")
    four = {2: launch.strip(11008, 2, 4, 4), 4: launch.strip(11008, 4, 4, 4)}
    two = {2: launch.strip(11008, 2, 4, 2), 4: launch.strip(11008, 4, 4, 2)}
    forward, backward, stats = (
        elementwise.swiglu_kernel,
        elementwise.swiglu_backward_kernel,
        statistics.swiglu_stats_kernel,
    )
    matrices, grads = ("gate", "up", "hidden"), ("grad", "gate", "up", "grad_gate", "grad_up", "hidden")
    gate = {"OBSERVE": "gate", "LANGUAGES": 16}
    hidden = {"OBSERVE": "hidden", "LANGUAGES": 32}
    merge = {
        **_pointers("i32", "part_count", "part_active"),
        **_pointers("fp32", "part_mean", "part_m2"),
        **_pointers("i64", "count", "active"),
        **_pointers("fp64", "mean", "m2"),
    }
    blocks = {"BLOCK_P": moments.Merger._BLOCK_P}
    merge_tile = launch.Strip(0, moments.Merger._BLOCK_N, 4)
    row = norms.whole_rows(4096, 2)
    norm = {**_pointers("bf16", "x", "weight", "y", "grad", "dx"), **_pointers("fp32", "rstd"), "eps": "fp32"}
    return {
        "swiglu bf16 silu": Case(forward, _pointers("bf16", *matrices), {"ACTIVATION": "silu"}, four[2], (), wide),
        "swiglu fp32 gelu plain": Case(
            forward, _pointers("fp32", *matrices), {"ACTIVATION": "gelu"}, four[4], ("up_ptr",), wide
        ),
        "swiglu_backward bf16 silu": Case(
            backward, _pointers("bf16", *grads), {"ACTIVATION": "silu"}, four[2], ("hidden_ptr",), wide
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
        "swiglu_moments bf16 silu": Case(
            stats,
            _pointers("bf16", *matrices) | _STATS,
            {"ACTIVATION": "silu"} | gate,
            two[2],
            ("up_ptr", "hidden_ptr"),
            wide[:2],
        ),
        "merge_partials": Case(moments.merge_partials_kernel, merge, {"CONTINUE": True} | blocks, merge_tile),
        "rms_norm bf16": Case(norms.rms_norm_kernel, norm, {"STYLE": "rounded"}, row, (), wide),
        "rms_norm_backward bf16": Case(norms.rms_norm_backward_kernel, norm, {"STYLE": "rounded"}, row, (), wide),
    }


def _rotary() -> dict[str, Case]:
    """Heads of 128 rotated whole, and heads of 64 of which 48 are (the backward, whose gradients are bfloat16)."""
    wide = ("vector_loads", "no_narrow_loads", "vector_stores")
    types = _pointers("bf16", "q", "k", "cos", "sin", "q_out", "k_out")
    whole = {"WIDTH": 128, "ROTATED": 128, "BLOCK_P": 1, "INVERSE": False, "HEADS": rotation.HEADS}
    partial = whole | {"WIDTH": 64, "ROTATED": 48, "BLOCK_P": 16, "INVERSE": True}
    single = types | _pointers("fp32", "cos", "sin")
    kernel = rotation.rotary_kernel
    return {
        "rotary bf16": Case(kernel, types, whole, rotation.tile_of(128, 2), (), wide),
        "rotary bf16 fp32 table": Case(kernel, single, whole, rotation.tile_of(128, 2), (), wide),
        "rotary backward bf16 partial": Case(kernel, types, partial, rotation.tile_of(48, 2), (), wide),
    }


def _gemms(target: int) -> dict[str, Case]:
    capability = (target // 10, target % 10)
    unit = {80: "hmma", 90: "wgmma", 100: "tcgen05"}[target]
    tile, single = launch.dual_gemm(4096, 2, capability), launch.dual_gemm(4096, 4, capability)
    matrices = ("x", "w_gate", "w_up", "hidden", "gate", "up")
    constants = {"ACTIVATION": "silu", "OBSERVE": "gate", "WIDEN": False, "GROUP_M": 8}
    projections, loads = ("gate_ptr", "up_ptr"), (unit, "vector_copies")
    pointers = {
        "gated_linear bf16 statistics projections": ("bf16", tile, (), loads),
        "gated_linear fp32 statistics": ("fp32", single, projections, ()),
    }
    if target < 90:
        pointers["gated_linear bf16 statistics"] = ("bf16", tile, projections, loads)
    cases = {
        name: Case(dual_gemm.gated_linear_kernel, _pointers(dtype, *matrices) | _STATS, constants, size, absent, expect)
        for name, (dtype, size, absent, expect) in pointers.items()
    }
    if target >= 90:
        rows, weights = (f"tensordesc<bf16[{n},{tile.block_k}]>" for n in (tile.block_m, tile.block_n))
        types = {"x_map": rows, "w_gate_map": weights, "w_up_map": weights} | _pointers("bf16", "hidden") | _STATS
        cases["gated_linear maps bf16 statistics"] = Case(
            dual_gemm.gated_linear_tma_kernel, types, constants, tile, projections, (unit, "tma")
        )
    chosen = _pointers("bf16", "grad", "x", "out") | _pointers("i64", "rows", "cols")
    for name, absent in (("all", ("rows_ptr", "cols_ptr")), ("rows", ("cols_ptr",)), ("columns", ("rows_ptr",))):
        size = launch.weight_grad(2, capability)
        cases[f"weight_grad bf16 {name}"] = Case(
            weight_grad.weight_grad_kernel, chosen, {"WIDEN": False}, size, absent, (unit,)
        )
    return cases


def cases(target: int) -> dict[str, Case]:
    """Every kernel and feature at the tile sizes of production, for compute capability ``target / 10``."""
    return _elementwise() | _rotary() | _gemms(target)


def _tile_constants(tile: launch.Strip | launch.GemmTile) -> dict[str, int]:
    if isinstance(tile, launch.Strip):
        return {"BLOCK_T": tile.block_t, "BLOCK_N": tile.block_n}
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}


def compile_case(case: Case, target: int) -> dict[str, Any]:
    """Registers, shared memory and the instructions that matter, read from the machine code."""
    names = case.kernel.arg_names
    constants = {**_tile_constants(case.tile), **case.constants, **dict.fromkeys(case.absent)}
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else case.types.get(name, "i32") for name in names}
    # Triton specialises run-time pointers and integers divisible by 16, except what a kernel exempts.
    aligned = [
        index
        for index, name in enumerate(names)
        if signature[name].startswith("*")
        or (signature[name] == "i32" and name not in case.kernel.do_not_specialize and name != "programs")
    ]
    source = ASTSource(
        case.kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {
        "num_warps": case.tile.num_warps,
        "num_stages": getattr(case.tile, "stages", 3),
        "maxnreg": getattr(case.tile, "max_registers", None),
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, code = (
            subprocess.run([*tool, cubin.name], capture_output=True, text=True, check=True).stdout
            for tool in (_USAGE, _CODE)
        )
    instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", code, re.MULTILINE)
    count = {name: sum(bool(re.match(pattern, op)) for op in instructions) for name, pattern in _PATTERNS.items()}
    count["no_narrow_loads"] = not count.pop("narrow_loads")
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
    } | count


_PATTERNS = {
    "spills": r"(STL|LDL)\b",
    "vector_loads": r"LDG\.\S*(128|256)",
    "narrow_loads": r"LDG\.\S*[US](8|16)\b",
    "vector_stores": r"STG\S*\.(128|256)",
    "vector_copies": r"LDGSTS\S*\.128",
    "tma": r"UTMALDG",
    "hmma": r"HMMA",
    "wgmma": r"HGMMA",
    "tcgen05": r"UTC\w*MMA",
}


def measure(target: int) -> dict[str, dict[str, Any]]:
    """What each case needs, by name."""
    return {name: compile_case(case, target) for name, case in cases(target).items()}


def violations(measured: dict[str, Any], budget: dict[str, int], expect: tuple[str, ...]) -> list[str]:
    """What a kernel does that it must not: spills, more registers or shared memory than budgeted, a slow path."""
    found = [f"{measured[name]} {name}" for name in ("spills", "stack") if measured[name]]
    found += [f"{measured[name]} {name}, budget {budget[name]}" for name in budget if measured[name] > budget[name]]
    return found + [f"no {name}" for name in expect if not measured[name]]


def write_budgets() -> None:
    """Raise kernel_budgets.json to what is measured: it holds the maximum over the Triton versions this ran under.

    To lower a budget, delete the file and run under each of them (3.6 and 3.7). Cases that are gone are dropped.
    """
    before = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    lines = []
    for target in TARGETS:
        needs = {
            name: {
                limit: max(need[limit], before.get(f"sm_{target}", {}).get(name, {}).get(limit, 0))
                for limit in ("registers", "shared")
            }
            for name, need in measure(target).items()
        }
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(need)}" for name, need in needs.items())
        lines.append(f' "sm_{target}": {{\n{rows}\n }}')
    BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_budgets()
    else:
        print(json.dumps(measure(int(sys.argv[1]))))
