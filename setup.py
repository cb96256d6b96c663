"""Builds csrc into the shared libraries of slamkern/ops/native.py: plain C ABI, no torch headers, no Python symbols.

``slamkern/_native.so`` needs a C++17 compiler (``CXX``, else c++, g++ or clang++ on PATH), ``slamkern/_native_cuda.so``
needs nvcc (on PATH, or under ``CUDA_HOME``). What cannot be built is left out and said so: slamkern then runs on plain
torch. ``SLAMKERN_CUDA=0`` leaves the CUDA half out; ``SLAMKERN_CUDA=1`` makes its absence an error.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CPU, CUDA = "slamkern._native", "slamkern._native_cuda"
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.*h"))

# No -ffast-math: statistics need IEEE sums, NaN and infinity. The last two change no value, they let the compiler turn
# selects into vector code; -ffp-contract=fast allows a * b + c in one rounding and nothing else.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# csrc/kernels.cpp is compiled once for each of these, cpu.cpp picks by what the processor has.
ISAS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISAS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mfma",
            "-mf16c",
            "-mprefer-vector-width=512",
        ],
    }

NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
    "-cudart",
    "static",
    "-shared",
    "--threads=0",
]
GPUS = (80, 90, 100)


def find_cxx() -> str | None:
    """The C++ compiler, or None."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, candidates) if path), None)


def find_nvcc() -> str | None:
    """nvcc, or None where there is none or ``SLAMKERN_CUDA=0``; with ``SLAMKERN_CUDA=1`` its absence is an error."""
    wanted = os.environ.get("SLAMKERN_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"error: SLAMKERN_CUDA={wanted!r}; use 0 (leave the CUDA half out), 1 (require it) or unset it")
    if wanted == "0":
        return None
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    nvcc = shutil.which("nvcc", path=f"{toolkit}{os.pathsep}{os.environ.get('PATH', '')}")
    if nvcc is None and wanted == "1":
        sys.exit("error: SLAMKERN_CUDA=1 but nvcc is neither on PATH nor under CUDA_HOME")
    return nvcc


def nvcc_command(nvcc: str) -> list[str]:
    """nvcc with flags: machine code for each of GPUS that this nvcc knows, PTX of the newest for what comes after."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    known = [gpu for gpu in GPUS if f"sm_{gpu}" in listed]
    targets = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in known]
    return [nvcc, *NVCC_FLAGS, *targets, f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}"]


class BuildLibraries(build_ext):
    """Compiles each extension as a plain shared library with the compiler found, not with Python's own flags."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).absolute()
        library.parent.mkdir(parents=True, exist_ok=True)
        if ext.name == CUDA:
            nvcc = find_nvcc()
            if nvcc is None:
                self._leave_out(ext, "nvcc was not found or SLAMKERN_CUDA=0")
            else:
                self._run([*nvcc_command(nvcc), *ext.sources, "-o", str(library)])
            return
        cxx = find_cxx()
        if cxx is None:
            self._leave_out(ext, "no C++ compiler was found")
        else:
            self._run_cpu(cxx, ext, library)

    def _run_cpu(self, cxx: str, ext: Extension, library: Path) -> None:
        folder = Path(self.build_temp, "slamkern").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in ext.sources:
            variants = ISAS if source.endswith("kernels.cpp") else {"baseline": []}
            for isa, flags in variants.items():
                objects.append(str(folder / f"{Path(source).stem}_{isa}.o"))
                self._run([cxx, *CXX_FLAGS, *flags, f"-DSLAMKERN_ISA={isa}", "-c", source, "-o", objects[-1]])
        self._run([cxx, "-shared", *objects, "-pthread", "-o", str(library)])

    def _leave_out(self, ext: Extension, reason: str) -> None:
        print(f"slamkern: {ext.name} is left out: {reason}", file=sys.stderr)

    def _run(self, command: list[str]) -> None:
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)


class AnyPythonWheel(bdist_wheel):
    """The libraries have no Python symbols: one wheel a platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    # optional: an editable install does not look for a library that was left out.
    ext_modules=[
        Extension(CPU, ["csrc/cpu.cpp", "csrc/kernels.cpp"], depends=HEADERS, optional=True),
        Extension(CUDA, ["csrc/cuda.cu"], depends=HEADERS, optional=True),
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
)
