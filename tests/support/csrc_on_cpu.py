"""csrc's CUDA library built for this CPU with a compiler of C++, under a sanitizer, and run on buffers of exact size.

The sources are csrc's own; where the language differs (launches, shared memory) they are rewritten, and
tests/csrc/cuda_shim has the rest: a block's threads are fibers that wait for one another at barriers.
"""

import functools
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slamkern.ops import native

CSRC = Path(__file__).parents[2] / "csrc"
SHIM = Path(__file__).parents[1] / "csrc" / "cuda_shim"
SOURCES = ("cuda.cu", "cuda_kernels.cuh", "device.cuh", "slamkern.h")
DTYPES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}


@dataclass(frozen=True)
class Call:
    """An op on gate, up or None, and grad (tokens, neurons) or ids (tokens,) int32.

    op: "swiglu", "backward", "stats", or "planned": statistics of two layers, of which the last is given back.
    gap: elements between rows; skew: bytes by which no pointer is aligned; seed: of the order of threads and blocks.
    """

    op: str
    gate: Tensor
    up: Tensor | None
    other: Tensor | None = None
    activation: str = "silu"
    observe: str = "gate"
    languages: int = 0
    gap: int = 0
    skew: int = 0
    seed: int = 0

    @property
    def outputs(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of the results."""
        matrix = (tuple(self.gate.shape), self.gate.dtype)
        if self.op == "backward":
            return [matrix] * (2 if self.up is None else 3)
        if self.op == "swiglu":
            return [matrix]
        each = (self.languages, self.gate.shape[1])
        return [matrix, ((self.languages,), torch.int64), *((each, d) for d in (torch.float64,) * 2 + (torch.int64,))]

    def line(self) -> str:
        numbers = (
            native._DTYPES[self.gate.dtype], native._ACTIVATIONS[self.activation], native._OBSERVABLES[self.observe],
            *self.gate.shape, self.languages, self.gap, self.skew, int(self.up is not None), self.seed,
        )  # fmt: skip
        return " ".join(map(str, (self.op, *numbers)))


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


class Library:
    """The built program in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, calls: Sequence[Call]) -> subprocess.CompletedProcess[str]:
        """Run the calls one after another; what a sanitizer finds is in stderr, with an exit status that is not 0."""
        files = [self.folder / name for name in ("jobs", "inputs", "outputs")]
        files[0].write_text("".join(f"{call.line()}\n" for call in calls))
        arrays = [x for call in calls for x in (call.gate, call.up, call.other) if x is not None]
        files[1].write_bytes(b"".join(map(_bytes, arrays)))
        command = [str(self.folder / "run"), *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    def run(self, calls: Sequence[Call]) -> list[list[Tensor]]:
        """The results of the calls."""
        done = self.start(calls)
        assert done.returncode == 0, done.stderr
        left, results = bytearray((self.folder / "outputs").read_bytes()), []
        for call in calls:
            outputs = []
            for shape, dtype in call.outputs:
                size = dtype.itemsize * torch.Size(shape).numel()
                outputs.append(torch.frombuffer(left[:size] or bytearray(1), dtype=torch.uint8)[:size].view(dtype))
                outputs[-1] = outputs[-1].view(shape)
                del left[:size]
            results.append(outputs)
        return results


def build(
    cxx: str, folder: Path, sanitizers: str, *, only: tuple[str, ...] = (), change: Callable[[str], str] = str
) -> Library:
    """Compile under ``sanitizers`` into ``folder``; ``only``: dtypes and activations, of all, that it is built for.

    change: what is done to the text of cuda_kernels.cuh first, to plant a fault.
    """
    folder.mkdir()
    for name in SOURCES:
        text = (CSRC / name).read_text()
        if name == "cuda_kernels.cuh":
            text = change(text)
        (folder / name).write_text(on_cpu(text, only))
    flags = ["-std=c++17", "-g1", "-Wall", "-Wno-unknown-pragmas", f"-I{SHIM}", f"-I{folder}"]
    scheduler = _scheduler(cxx, folder.parents[1] / "fibers.o")
    checked = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover"]
    _compile([cxx, *flags, *checked, SHIM / "run.cpp", scheduler, "-o", folder / "run"])
    return Library(folder)


@functools.cache
def _scheduler(cxx: str, object_file: Path) -> Path:
    """The fibers, which no sanitizer watches, compiled once."""
    _compile([cxx, "-std=c++17", "-O1", "-Wall", f"-I{SHIM}", "-c", SHIM / "fibers.cpp", "-o", object_file])
    return object_file


def on_cpu(text: str, only: tuple[str, ...]) -> str:
    """CUDA C++ as C++: launches and shared memory rewritten, other dtypes and activations than ``only`` left out."""
    text = re.sub(
        r"extern __shared__ (\w+) (\w+)\[\];", r"\1* const \2 = static_cast<\1*>(shim::dynamic_shared());", text
    )
    text = re.sub(r"(\w+(?:<[^<>;]*>)?)\s*<<<(.*?)>>>\(", r"shim::launch(\1, \2)(", text, flags=re.DOTALL)
    if only:
        choice = r"^ *if \((?:dtype|activation) == SLAMKERN_(\w+)\) (?:with|launch)\(.*\n"
        text = re.sub(choice, lambda found: found[0] if found[1] in only else "", text, flags=re.MULTILINE)
    return text


def _compile(command: Sequence[object]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
