"""What is built and shipped: with a compiler, without one, with nvcc; all offline, on a copy of the sources."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("setuptools", minversion="77")

NVCC = shutil.which("nvcc", path=f"/usr/local/cuda/bin{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of what a build reads, without anything built."""
    folder = tmp_path / "sources"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "slamkern"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(sources: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": str(sources), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def build(sources: Path, kind: str, **environment: str) -> Path:
    """The path of the wheel or sdist, built the way pip does it."""
    code = f"import setuptools.build_meta as backend; print('built', backend.build_{kind}('dist'))"
    result = run(sources, "-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return sources / "dist" / re.search(r"^built (.*)$", result.stdout, re.MULTILINE)[1]


def test_sdist_has_everything_a_build_needs(sources):
    with tarfile.open(build(sources, "sdist")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {str(path.relative_to(sources)) for path in (sources / "csrc").iterdir()}
    wanted |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "slamkern/py.typed", "slamkern/ops/native.py"}
    assert wanted <= names


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler here")
def test_wheel_has_the_library_and_serves_every_python_3(sources):
    wheel = build(sources, "wheel", SLAMKERN_CUDA="0")
    assert "-py3-none-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {str(path.relative_to(sources)) for path in (sources / "slamkern").rglob("*.*") if path.suffix != ".py"}
    assert {"slamkern/_native.so", *data} <= names
    assert "slamkern/_native_cuda.so" not in names


def test_without_compilers_the_build_succeeds_and_says_what_it_left_out(sources):
    nothing = {"PATH": str(sources / "nowhere"), "CUDA_HOME": str(sources / "nowhere"), "CXX": ""}
    result = run(sources, "setup.py", "build_ext", "--inplace", **nothing, SLAMKERN_CUDA="")
    assert result.returncode == 0, result.stderr
    assert "slamkern._native is left out: no C++ compiler was found" in result.stderr
    assert "slamkern._native_cuda is left out: nvcc was not found" in result.stderr
    demanded = run(sources, "setup.py", "build_ext", "--inplace", **nothing, SLAMKERN_CUDA="1")
    assert demanded.returncode == 1
    assert "error: SLAMKERN_CUDA=1 but nvcc is neither on PATH nor under CUDA_HOME" in demanded.stderr


def test_import_and_reference_work_without_the_library(sources):
    code = (
        "import torch, slamkern; from slamkern.ops import native, swiglu; x = torch.ones(2, 3);"
        "print(slamkern.__file__, native.unavailable_reason('cpu'), swiglu(x, x, backend='auto').shape, sep='\\n')"
    )
    result = run(sources, "-c", code)
    assert result.returncode == 0, result.stderr
    file, reason, shape = result.stdout.splitlines()
    assert Path(file).is_relative_to(sources)
    assert reason.startswith("_native.so was not built: a C++17 compiler was missing when slamkern was installed")
    assert shape == "torch.Size([2, 3])"


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc here: csrc/cuda.cu is not compiled by this run")
@pytest.mark.parametrize("gpu", [80, 90, 100])
def test_cuda_kernels_do_not_spill_registers(gpu, tmp_path):
    command = [NVCC, "-std=c++17", "-O3", f"-arch=sm_{gpu}", "-cubin", "-Xptxas", "-v", "cuda.cu"]
    result = subprocess.run(
        [*command, "-o", tmp_path / "cuda.cubin"], cwd=ROOT / "csrc", capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", result.stderr)]
    assert (
        len(spills) == len(registers) == 74
    )  # of 3 dtypes x 2 widths x 4 activations: forward x 2, backward; row_map, merge
    assert set(spills) == {("0", "0", "0")}
    assert max(registers) <= 128  # four blocks of 128 threads leave room for 512 threads a multiprocessor
