"""csrc's CUDA kernels on a CPU: values against float64, no access out of bounds, no race; planted faults are found."""

import re
import shutil
import subprocess

import pytest
import torch
from support.csrc_on_cpu import Call, Library, build
from support.kernel_checks import assert_as_good

from slamkern.kernels import ACTIVATIONS
from slamkern.ops import reference

CXX = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW = ("FLOAT32", "SILU")


def unavailable_reason(folder, sanitizer):
    """Why nothing can be built and run under a sanitizer here, or None."""
    if CXX is None:
        return "no C++ compiler"
    (folder / "probe.cpp").write_text("_Float16 x; int main() { return 0; }")
    command = [CXX, f"-fsanitize={sanitizer}", str(folder / "probe.cpp"), "-o", str(folder / "probe")]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        return f"{CXX} builds nothing under -fsanitize={sanitizer}: {built.stderr.strip().splitlines()[-1]}"
    ran = subprocess.run([str(folder / "probe")], capture_output=True, text=True)
    return f"-fsanitize={sanitizer} does not run here: {ran.stderr.strip()[:200]}" if ran.returncode else None


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Builds the library under a sanitizer, with a fault where one is given, or skips."""
    reasons = {}

    def make(sanitizer, only=(), change=str) -> Library:
        folder = tmp_path_factory.mktemp("csrc")
        if sanitizer not in reasons:
            reasons[sanitizer] = unavailable_reason(folder, sanitizer)
        if reasons[sanitizer]:
            pytest.skip(reasons[sanitizer])
        return build(CXX, folder / "build", sanitizer, only=only, change=change)

    return make


@pytest.fixture(scope="module")
def library(make):
    return make("address")


def narrow(text):
    """Fewer threads a block: for ThreadSanitizer each is a thread of its own, which costs milliseconds."""
    text = text.replace("THREADS = 128", "THREADS = 32").replace("TILE_ROWS = 128", "TILE_ROWS = 8")
    return text.replace("MAP_WARPS = 32", "MAP_WARPS = 2")


def normal(tokens, neurons, dtype=torch.float32, seed=0):
    return torch.randn(tokens, neurons, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mixed(tokens, languages):
    """Ids of a language in no order, -1 and one too large among them."""
    return torch.randint(-1, languages + 1, (tokens,), generator=torch.Generator().manual_seed(5), dtype=torch.int32)


def assert_statistics(call, actual):
    wide = call.gate.double(), None if call.up is None else call.up.double()
    truth, *exact = reference.swiglu_stats(*wide, call.other, call.languages, call.activation, call.observe)
    hidden, count, mean, m2, active = actual
    assert_as_good(hidden, reference.swiglu(call.gate, call.up, call.activation), truth)
    assert torch.equal(count, exact[0]) and torch.equal(active, exact[3])
    torch.testing.assert_close(mean, exact[1], rtol=2e-6, atol=3e-6)
    torch.testing.assert_close(m2, exact[2], rtol=1e-5, atol=1e-6)


def assert_gradients(call, actual):
    arguments = (call.other, call.gate, call.up)
    eager = reference.swiglu_backward(*arguments, call.activation, True)
    wide = (None if x is None else x.double() for x in arguments)
    exact = reference.swiglu_backward(*wide, call.activation, True)
    expected = [(e, t) for e, t in zip(eager, exact, strict=True) if e is not None]
    for one, (other, truth) in zip(actual, expected, strict=True):
        assert_as_good(one, other, truth)


def test_values_are_those_of_float64_and_no_access_is_out_of_bounds(library):
    """Vectors and single elements, strided rows and pointers that are not aligned, several tiles a language."""
    calls = []
    for dtype in DTYPES:
        gate, up, grad = (normal(9, 40, dtype, seed) for seed in range(3))
        for activation in (name for name in ACTIVATIONS if name != "relu2"):
            calls.append(Call("backward", gate, up, grad, activation, gap=8))
            calls.append(Call("stats", gate, up, mixed(9, 3), activation, "hidden", 3, gap=3))
        calls.append(Call("backward", gate, None, grad, skew=dtype.itemsize))
        calls.append(Call("swiglu", gate, None, gap=8))
        calls.append(Call("stats", normal(300, 24, dtype), None, mixed(300, 2), languages=2))
    calls.append(Call("stats", normal(70, 7), normal(70, 7), mixed(70, 100), languages=100))  # four turns of a warp
    calls.append(Call("stats", normal(40, 130), normal(40, 130), mixed(40, 1), languages=1, skew=4))
    calls += [Call("stats", normal(0, 8), None, mixed(0, 2), languages=2), Call("swiglu", normal(0, 8), None)]
    calls.append(Call("planned", normal(70, 24), normal(70, 24), mixed(70, 3), languages=3))
    calls.append(Call("stats", normal(9000, 3), None, mixed(9000, 5), languages=5))  # more ids than are in flight
    for call, actual in zip(calls, library.run(calls), strict=True):
        if call.op in ("stats", "planned"):
            assert_statistics(call, actual)
        elif call.op == "backward":
            assert_gradients(call, actual)
        else:
            truth = reference.swiglu(call.gate.double(), None, "silu")
            assert_as_good(actual[0], reference.swiglu(call.gate, None, "silu"), truth)


def test_the_order_of_threads_and_blocks_changes_no_bit(library):
    gate, up, ids = normal(300, 40), normal(300, 40, seed=1), mixed(300, 4)
    first, *others = library.run([Call("stats", gate, up, ids, languages=4, seed=seed) for seed in range(3)])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def races(tokens=20):
    gate, up = normal(tokens, 40), normal(tokens, 40, seed=1)
    return [Call("stats", gate, up, mixed(tokens, 2), languages=2), Call("backward", gate[:2], up[:2], gate[:2])]


def test_no_two_threads_race(make):
    library = make("thread", FEW, narrow)
    calls = races()
    results = library.run(calls)
    assert_statistics(calls[0], results[0])
    assert_gradients(calls[1], results[1])


def replaced(pattern, by, count=1):
    def change(text):
        text, number = re.subn(pattern, by, text, count=count)
        assert number == count
        return text

    return change


FAULTS = {
    "a column too many": ("address", replaced(r"column >= neurons", "column > neurons"), "heap-buffer-overflow"),
    "a row too many": ("address", replaced(r"i \+ r >= rows", "i + r > rows", count=2), None),
    "a language too few": ("address", replaced(r"groups = languages \+ 1", "groups = languages"), None),
    "no barrier after the counting": (
        "thread", replaced(r"\}\);\n  __syncthreads\(\);\n\n  if", "});\n\n  if"), "data race",
    ),
    "no order within a warp": ("thread", replaced(r"= 0;\n  __syncwarp\(\);", "= 0;"), "data race"),
    "two blocks on one tile": ("thread", replaced(r"t = blockIdx\.y; t < tiles", "t = 0; t < tiles"), "data race"),
    "a barrier in a branch": (
        "address", replaced(r"if \(warp == 0\) \{\n", "if (warp == 0) { __syncthreads();\n"),
        "a barrier that other threads",
    ),
    "an exchange in a branch": (
        "address", replaced(r"if \(i < groups\) \{\n", "if (i < groups) { __syncwarp();\n"), "lanes that never come",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(make, fault):
    sanitizer, change, words = FAULTS[fault]
    library = make(sanitizer, FEW, lambda text: narrow(change(text)) if sanitizer == "thread" else change(text))
    calls = races()
    done = library.start(calls)
    if done.returncode == 0:  # not seen by the sanitizer: then by the values
        assert words is None
        with pytest.raises(AssertionError):
            assert_statistics(calls[0], library.run(calls)[0])
    else:
        assert words is None or words in done.stderr
