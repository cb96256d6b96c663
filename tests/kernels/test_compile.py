"""Every Triton kernel compiled for sm_80, sm_90 and sm_100, without a GPU: no spills, in budget, on the fast path."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.machine_code import hot_part, instructions

pytest.importorskip("triton")
if importlib.util.find_spec("triton.backends.nvidia") is None:
    pytest.skip("this triton has no NVIDIA backend", allow_module_level=True)

SCRIPT = Path(__file__).with_name("compile_kernels.py")
BUDGETS = json.loads(SCRIPT.with_name("kernel_budgets.json").read_text())


def script():
    """The functions of compile_kernels.py, to read and not to compile."""
    spec = importlib.util.spec_from_file_location("compile_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", [80, 90, 100])
def test_machine_code(target):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(SCRIPT.parents[2]), str(SCRIPT.parents[1])))}
    done = subprocess.run([sys.executable, SCRIPT, str(target)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    measured, gate = json.loads(done.stdout), script()
    assert set(measured) == set(BUDGETS[f"sm_{target}"]), "run: python tests/compile_kernels.py --write"
    wrong = {
        name: found
        for name, case in gate.cases(target).items()
        if (found := gate.violations(measured[name], BUDGETS[f"sm_{target}"][name], case.expect))
    }
    assert not wrong, "\n".join(f"sm_{target} {name}: {', '.join(found)}" for name, found in wrong.items())


def test_what_a_target_cannot_have_is_named_with_its_reason():
    gate = script()
    lacking = {name.split()[0] for name in set(gate.cases(90)) - set(gate.cases(80))}
    assert lacking == set(gate.IMPOSSIBLE[80]) == {"quantize_rows"}
    assert "e4m3" in gate.IMPOSSIBLE[80]["quantize_rows"] and set(gate.cases(90)) == set(gate.cases(100))


# An H200: 132 multiprocessors that issue 4 instructions for 32 threads each cycle, 1.755 GHz; 4.2 TB/s of copying.
ISSUED, COPIED = 132 * 4 * 32 * 1.755e9, 4.2e12


@pytest.mark.parametrize(
    ("name", "bytes_an_element"),
    [("swiglu bf16 silu", 6), ("swiglu_stats bf16 silu gate", 6), ("swiglu_backward bf16 silu", 10)],
)
def test_memory_not_the_issue_rate_is_the_limit(name, bytes_an_element):
    """At most 60 % of the instructions that can be issued while the bytes of an element are moved."""
    share = BUDGETS["sm_90"][name]["instructions"] * COPIED / bytes_an_element / ISSUED
    assert share <= 0.6


LOOP = """
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_3:
        /*0040*/                   FADD R1, R1, R2 ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0060*/                   STG.E.128 [R8.64], R4 ;
        /*0070*/               @P0 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
        /*0090*/                   NOP ;
"""


def test_the_hot_part_is_the_loop_over_tiles():
    assert [name.split(".")[0] for name in hot_part(LOOP)] == ["LDG", "BRA", "BAR", "FADD", "BRA", "STG", "BRA"]
    straight = LOOP.replace("@P0 BRA `(.L_x_1)", "@P0 BRA `(.L_x_4)")
    assert len(hot_part(straight)) == len(instructions(straight)) - 1 == 8


def test_the_gate_can_close():
    budget = {"registers": 128, "shared": 1024, "instructions": 23.1, "barriers": 0}
    good = {"spills": 0, "stack": 0, "vector_loads": 4} | budget
    violations = script().violations
    assert violations(good, budget, ("vector_loads",)) == []
    assert violations(good | {"spills": 2, "stack": 8}, budget, ("vector_loads",)) == ["2 spills", "8 stack"]
    assert violations(good | {"registers": 129, "vector_loads": 0}, budget, ("vector_loads",)) == [
        "129 registers, budget 128",
        "no vector_loads",
    ]
    slow = good | {"instructions": 23.2, "barriers": 1}
    assert violations(slow, budget, ()) == ["23.2 instructions, budget 23.1", "1 barriers, budget 0"]
