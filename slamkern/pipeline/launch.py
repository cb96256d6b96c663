"""How many processes a job has: from a configuration file of ``accelerate launch``, or as they were started."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slamkern.distributed import launched, launched_with_fsdp
from slamkern.errors import SlamkernError
from slamkern.reading import read_yaml


@dataclass(frozen=True)
class Launch:
    """``processes`` on ``machines``, each with as many. fsdp: to be sharded. here: this machine is one of them."""

    processes: int = 1
    machines: int = 1
    fsdp: bool = False
    here: bool = True


def read_launch(path: Path | None) -> Launch:
    """The job that a file describes; None: the one that this process is part of.

    SlamkernError where the file is none of accelerate's, and for what is neither replicated nor FSDP2.
    """
    if path is None:
        machines = max(1, launched() // int(os.environ.get("LOCAL_WORLD_SIZE", launched())))
        return Launch(launched(), machines, fsdp=launched_with_fsdp())
    values = read_yaml(path)
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise SlamkernError(f"{path} is no configuration of accelerate launch: it has no distributed_type")
    kind = values["distributed_type"]
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"):
        raise SlamkernError(
            f"{path}: distributed_type {kind!r} cannot be planned; known: NO, MULTI_GPU, MULTI_CPU, FSDP"
        )
    version = (values.get("fsdp_config") or {}).get("fsdp_version", 1)
    if kind == "FSDP" and version != 2:
        raise SlamkernError(f"{path}: fsdp_config.fsdp_version is {version!r}; slamkern works with 2")
    processes, machines = (_count(values, name, path) for name in ("num_processes", "num_machines"))
    if processes % machines:
        raise SlamkernError(f"{path}: {processes} processes are not equally many on {machines} machines")
    return Launch(processes, machines, fsdp=kind == "FSDP", here=False)


def _count(values: dict[str, Any], name: str, path: Path) -> int:
    value = values.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SlamkernError(f"{path}: {name} is {value!r}; it must be a whole number, 1 or more")
    return value
