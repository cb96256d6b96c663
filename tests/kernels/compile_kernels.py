"""Compile every Triton kernel for a GPU that need not be there, and print what the machine code needs, as JSON.

    python tests/kernels/compile_kernels.py 90            measure for sm_90
    python tests/kernels/compile_kernels.py --faulty      measure the kernels with planted faults for sm_90
    python tests/kernels/compile_kernels.py --write       measure for all targets into budgets/triton-VERSION.json

Runs on its own, not under pytest: the tests set TRITON_INTERPRET, and an interpreted kernel cannot be compiled.
Tile sizes come from slamkern.kernels.launch, so that what is compiled here is what is launched there, with the
specialization Triton makes at run time. The cases are in kernel_cases.py.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a test that imports this to read it has chosen the interpreter for its whole process
    os.environ["TRITON_INTERPRET"] = "0"

import triton
from packaging.version import Version
from support.faulty_kernels import faulty_cases
from support.kernel_cases import IMPOSSIBLE, Case, cases  # noqa: F401 - the test reads all of them here
from support.machine_code import hot_part, instructions
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = (80, 90, 100)
LIMITS = ("registers", "shared", "instructions", "barriers")
NEVER = ("spills", "stack")  # unless budgeted, where a compiler leaves no choice
FOLDER = Path(__file__).with_name("budgets")
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_USAGE = (_TOOLS / "cuobjdump", "--dump-resource-usage")
_CODE = (_TOOLS / "nvdisasm", "--print-code", "--no-dataflow")  # half the time of cuobjdump -sass


def compile_case(case: Case, target: int) -> dict[str, Any]:
    """Registers, shared memory and the instructions that matter, read from the machine code."""
    names = case.kernel.arg_names
    constants = {
        "BLOCK_T": case.tile.block_t,
        "BLOCK_N": case.tile.block_n,
        **case.constants,
        **dict.fromkeys(case.absent),
    }
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else case.types.get(name, "i32") for name in names}
    # Triton specializes run-time pointers and integers divisible by 16, except what a kernel exempts.
    aligned = [
        index
        for index, name in enumerate(names)
        if signature[name].startswith("*") or (signature[name] == "i32" and name not in case.kernel.do_not_specialize)
    ]
    source = ASTSource(
        case.kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": case.tile.num_warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, code = (
            subprocess.run([*tool, cubin.name], capture_output=True, text=True, check=True).stdout
            for tool in (_USAGE, _CODE)
        )
    operations, hot = instructions(code), hot_part(code)
    count = {name: sum(bool(re.match(pattern, op)) for op in operations) for name, pattern in _PATTERNS.items()}
    elements = case.tile.block_t * case.tile.block_n / (32 * case.tile.num_warps)
    count["no_narrow_loads"] = not count.pop("narrow_loads")
    # `div.full` may be off by two units in the last place; the interpreter, which tests divide in, never is.
    count["rounded_division"] = "div.full" not in compiled.asm["ptx"]
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        # Of a thread for each element of its tile, in the loop over tiles where there is one.
        "instructions": round(len(hot) / elements, 1),
        "barriers": sum(name.startswith("BAR") for name in hot),
    } | count


_PATTERNS = {
    "spills": r"(STL|LDL)\b",
    "vector_loads": r"LDG\.\S*(128|256)",
    "narrow_loads": r"LDG\.\S*[US](8|16)\b",
    "vector_stores": r"STG\S*\.(128|256)",
    "products": r"[HIQ]G?MMA\b|UTC\w*MMA\b",
}


def measure(target: int) -> dict[str, dict[str, Any]]:
    """What each case needs, by name."""
    return {name: compile_case(case, target) for name, case in cases(target).items()}


def violations(measured: dict[str, Any], budget: dict[str, float], expect: tuple[str, ...]) -> list[str]:
    """What a kernel does that it must not: spills, more than budgeted, a slow path."""
    limits = dict.fromkeys(NEVER, 0) | budget
    found = [f"{measured[name]} {name}, budget {limits[name]}" for name in limits if measured[name] > limits[name]]
    return found + [f"no {name}" for name in expect if not measured[name]]


def minor(version: str) -> str:
    """``3.7`` of ``3.7.1``."""
    return ".".join(version.split(".")[:2])


def read_budgets(version: str = triton.__version__) -> dict[str, dict[str, dict[str, float]]]:
    """By target and case: what each case needed under this version of Triton, or the newest before it."""
    known = sorted(FOLDER.glob("triton-*.json"), key=_version_of)
    usable = [path for path in known if _version_of(path) <= Version(minor(version))]
    return dict(json.loads((usable or known)[-1].read_text()))


def _version_of(path: Path) -> Version:
    return Version(path.stem.removeprefix("triton-"))


def write_budgets() -> None:
    """Write what every case needs under the installed Triton."""
    lines = []
    for target in TARGETS:
        needs = {
            name: {limit: need[limit] for limit in (*LIMITS, *NEVER) if limit in LIMITS or need[limit]}
            for name, need in measure(target).items()
        }
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(need)}" for name, need in needs.items())
        lines.append(f' "sm_{target}": {{\n{rows}\n }}')
    (FOLDER / f"triton-{minor(triton.__version__)}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_budgets()
    elif sys.argv[1:] == ["--faulty"]:
        print(json.dumps({name: compile_case(case, 90) for name, case in faulty_cases().items()}))
    else:
        print(json.dumps(measure(int(sys.argv[1]))))
