"""The result files: one JSON a machine, ``benchmarks/results/<device>.json``, a stage of rows at a time.

A file is ``{"device": ..., "stages": {name: {"environment", "command", "seconds", "rows"}}}``. Every stage carries the
environment it was measured in, because stages may be measured again one by one. Files are written atomically and a
stage replaces only itself.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slamkern.files import write_json
from slamkern.reading import read_json
from slamkern.version import installed_version

FOLDER = Path(__file__).with_name("results")
_PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "transformer-engine", "peft", "numpy")
Row = dict[str, Any]


def cpu_model() -> str:
    """The processor's name as the kernel tells it, else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return " ".join((found.group(1) if found else platform.processor() or platform.machine()).split())


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> dict[str, Any]:
    """What a number depends on: device, driver, processor, threads, versions, commit and date."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    return {
        "device": device_name(device),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or None,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # how quiet the machine was: 1-minute average of runnable processes
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def path_of(device: torch.device, folder: Path = FOLDER) -> Path:
    """The result file of a device."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower().replace("(r)", "")).strip("-")
    return folder / f"{slug}.json"


def load(path: Path) -> dict[str, Any]:
    """A result file, or an empty one where there is none yet."""
    if not path.exists():
        return {"device": None, "stages": {}}
    return dict(read_json(path))


def folder_options(name: str, doc: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Of a command that puts what lies in a folder among the results: ``folder``, ``name``, ``results``."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help=f"of the result file: {name}-NAME.json")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    return parser.parse_args(argv)


def write_stage(
    device: torch.device, stage: str, rows: list[Row], *, command: str, seconds: float, folder: Path = FOLDER
) -> Path:
    """Put the rows of one stage into the device's file, in place of those it had; the other stages stay."""
    path = path_of(device, folder)
    content = load(path)
    content["device"] = device_name(device)
    content["stages"][stage] = {
        "environment": environment(device),
        "command": command,
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    write_json(path, content)
    return path


def rows_of(device: torch.device, stage: str, folder: Path = FOLDER) -> list[Row]:
    """The rows a stage has in the device's file; none where it was not measured."""
    return list(load(path_of(device, folder))["stages"].get(stage, {}).get("rows", []))


def read_files(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All result files, those of GPUs first."""
    files = [load(path) for path in sorted(folder.glob("*.json"))]
    return sorted(files, key=lambda content: "threads" in content["device"])


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _commit() -> str | None:
    """The commit of the checkout, with ``+changes`` where files differ from it; None outside a repository."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--", "../slamkern", "../csrc", "../benchmarks/*.py")
    return f"{commit}+changes" if commit and changed else commit or None
