"""What the device can do at most, measured here: copy bandwidth and the rate of a large matrix product.

A copy reads and writes each byte once, so its traffic is twice the tensor; both count. The product is square, through
torch's own library (cuBLAS, MKL or oneDNN) on random data: a product of zeros runs faster than any real one. It is the
rate over a second of them (on a CPU a fifth): clocks that a burst reaches do not hold.
"""

from collections.abc import Sequence

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from benchmarks.timing import Case, interleaved
from slamkern.bench.step_profile import gemm_ceiling

COLUMNS = ("ceiling", "dtype", "size", "median_ms", "gbps", "tflops")


def copy_row(device: torch.device, size: int, rounds: int) -> Row:
    """Bandwidth of a copy of ``size`` bytes into memory that exists already."""
    source = torch.empty(size // 4, device=device).uniform_()
    target = torch.zeros_like(source)
    timing = interleaved({"copy": Case(lambda _: target.copy_(source))}, device, rounds=rounds)["copy"]
    gbps = 2 * size / timing.median_ms / 1e6
    return {"ceiling": "copy", "dtype": "float32", "size": size, "median_ms": timing.median_ms, "gbps": gbps}


def gemm_row(device: torch.device, dtype: torch.dtype, side: int) -> Row:
    """Rate of ``side`` x ``side`` x ``side`` products, sustained."""
    tflops = gemm_ceiling(device, dtype, side) / 1e12
    milliseconds = 2 * side**3 / tflops / 1e9
    name = str(dtype).removeprefix("torch.")
    return {"ceiling": "gemm", "dtype": name, "size": side, "median_ms": milliseconds, "tflops": tflops}


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("ceilings", __doc__.splitlines()[0], argv)
    if stage.dry:
        size, side, rounds = 1 << 16, 64, 3
    elif stage.device.type == "cuda":
        size, side, rounds = 1 << 32, 8192, 30
    else:
        size, side, rounds = 1 << 29, 2048, 9
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if stage.device.type == "cuda" else (torch.float32,)
    stage.rows.append(copy_row(stage.device, size, rounds))
    stage.rows += [gemm_row(stage.device, dtype, side) for dtype in dtypes]
    stage.save()
    show(f"ceilings of {stage.device}", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
