"""Every kernel under compute-sanitizer: no access out of bounds (memcheck), no race in shared memory (racecheck), no
memory read before it is written (initcheck), no barrier that some threads miss (synccheck).

    python -m benchmarks.sanitize [--device cuda]

The kernels are launched once for each dtype and on shapes that fill no tile: where a mask is wrong, it shows there.
Statistics are also launched twice with one plan whose languages have several parts, which wait for one another.
Without a CUDA device, or without the tool (it comes with the CUDA toolkit), a row says so.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern import kernels
from slamkern.kernels import launch
from slamkern.ops import native

COLUMNS = ("tool", "kernels", "errors", "absent")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_PROGRAM = "from benchmarks import sanitize; sanitize.launch_every_kernel('cuda')"
_COUNT = re.compile(r"(?:ERROR SUMMARY: (\d+) error)|(?:RACECHECK SUMMARY: (\d+) hazard)")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def launches(device: str) -> Iterator[tuple[str, Any]]:
    """Op and result of every launch: each Triton kernel, and where it was built the compiled op."""
    for dtype in _DTYPES:
        yield from _launches_in(dtype, device)


def _launches_in(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    modules = (kernels, native) if native.unavailable_reason(device) is None else (kernels,)
    for tokens, neurons in ((1, 17), (67, 200)):
        gate, up = normal(tokens, 2 * neurons).split(neurons, dim=1)
        grad, x, weight = normal(tokens, neurons), normal(tokens, 48), normal(48)
        for layout in ("grouped", "mixed"):
            ids = torch.arange(-1, tokens - 1) % 5 - 1
            ids = (ids.sort().values if layout == "grouped" else ids).int().to(device)
            for backend in modules:
                yield "swiglu_stats", backend.swiglu_stats(gate, up, ids, 4, "silu", "gate")
        for backend in modules:
            yield "swiglu", backend.swiglu(gate, up, "silu")
            for need_gate in (True, False):
                yield "swiglu_backward", backend.swiglu_backward(grad, gate, up, "silu", True, need_gate)
        norm, rstd = kernels.rms_norm(x, weight, 1e-6, "llama")
        yield "rms_norm", norm
        yield "rms_norm_backward", kernels.rms_norm_backward(x, x, weight, rstd, "llama")
        if device == "cpu" or torch.cuda.get_device_capability() >= (8, 9):
            multiplier = torch.rand(48, generator=generator).to(device)
            for factors in (None, multiplier):
                yield "quantize_rows", kernels.quantize_rows(x, factors)
    gate, up = normal(300, 2 * 200).split(200, dim=1)
    ids = (torch.arange(300) % 2).int().to(device)
    for backend in modules:
        plan = backend.plan_rows(ids, 2, 200, ids.device)
        into = launch.zero_moments(2, 200, ids.device)
        for _ in range(2):  # layers
            yield "swiglu_stats", backend.swiglu_stats(gate, up, ids, 2, "silu", "gate", into, plan)


def launch_every_kernel(device: str) -> int:
    """Launch them all, print how many there were and return it."""
    count = sum(1 for _ in launches(device))
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} launches")
    return count


def check(tool: str, seconds: float) -> Row:
    """A row for one tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return {"tool": tool, "absent": "compute-sanitizer is not installed; it comes with the CUDA toolkit"}
    # torch's caching allocator would put every tensor into blocks that it owns: no access would be out of bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", _PROGRAM]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"tool": tool, "absent": f"not done after {seconds:.0f} s (--minutes)"}
    return verdict(tool, done.stdout + done.stderr)


def verdict(tool: str, output: str) -> Row:
    """What the tool's output says; ``absent`` holds its end where it has no summary."""
    summary, launched = _COUNT.search(output), re.search(r"(\d+) launches", output)
    if summary is None or launched is None:
        return {"tool": tool, "absent": f"failed: {output.strip()[-300:]}"}
    return {"tool": tool, "kernels": int(launched[1]), "errors": int(next(filter(None, summary.groups())))}


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("sanitize", __doc__.splitlines()[0], argv)
    if stage.device.type == "cuda":
        launch_every_kernel("cuda")  # compiled once: under each tool it would take the time that the tool has
    for index, tool in enumerate(TOOLS):
        if stage.device.type == "cuda":
            stage.rows.append(check(tool, max(1.0, stage.seconds_left / (len(TOOLS) - index))))
        else:
            stage.rows.append({"tool": tool, "absent": "needs a CUDA device"})
        stage.save()
    show(f"compute-sanitizer on {stage.device}", stage.rows, COLUMNS)
    return 1 if any(row.get("errors") for row in stage.rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
