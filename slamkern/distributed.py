"""The processes of one job, as ``accelerate launch`` and ``torchrun`` start them: who this one is, what they agree on.

Each process loads the whole model and gets a share of the work. Without a launcher there is one process, and nothing
here does anything. Accelerate sets the process group and the device up; the first question asked here joins it, so
every process of a job must call the functions of this package in the same order.

DistributedDataParallel is not used: it wants one forward of the wrapped module for every backward, as many of them in
every process, and sends gradients of each; here they are summed once a step, of the trained tensors alone.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slamkern.errors import SlamkernError

T = TypeVar("T")
_LAUNCHERS_NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_",
    "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_",
)  # fmt: skip
TIMEOUT = timedelta(minutes=30)  # what a process waits for the others: a checkpoint, the longest answers


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_with_fsdp() -> bool:
    """Whether accelerate launch was told ``--use_fsdp``."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def join(timeout: timedelta = TIMEOUT) -> None:
    """Join the other processes of the job, unless that was done or there are none. SlamkernError without accelerate."""
    if dist.is_initialized() or launched() < 2:
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise SlamkernError(
            f"{launched()} processes were started (WORLD_SIZE); they need accelerate: pip install 'slamkern[scale]'"
        ) from None
    with reaching_others():
        if torch.cuda.is_available():
            PartialState(backend="cpu:gloo,cuda:nccl", timeout=timeout)
        else:
            PartialState(cpu=True, timeout=timeout)
    if not dist.is_initialized():  # accelerate keeps the state that it was asked for first
        raise SlamkernError(f"{launched()} processes were started, but accelerate was set up in this one without them")


def world_size() -> int:
    """How many processes the job has."""
    join()
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    join()
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def local_rank() -> int:
    """Which of the processes on its machine this one is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def environment_alone() -> dict[str, str]:
    """The environment for a program that is no process of the job but has the GPU of this one."""
    values = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS_NAMES)}
    if launched() > 1:
        visible = values.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        values["CUDA_VISIBLE_DEVICES"] = ",".join(devices[local_rank() : local_rank() + 1])
    return values


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel, whose own forward waits for all processes; any other model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def sum_(tensors: Iterable[Tensor]) -> None:
    """Add up tensors, of the same shapes in all processes, in place; the sums are bitwise the same everywhere."""
    if world_size() == 1:
        return
    with reaching_others():
        running = [(tensor, sent := _sendable(tensor), dist.all_reduce(sent, async_op=True)) for tensor in tensors]
        for tensor, sent, work in running:
            work.wait()
            if sent is not tensor:
                tensor.copy_(sent)


def largest(*values: float) -> list[float]:
    """The largest of each value over all processes: whether any wants something, how much the hungriest took."""
    if world_size() == 1:
        return list(values)
    with reaching_others():
        tensor = _sendable(torch.tensor(values, dtype=torch.float64))
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, of one shape, in the order of their ranks; where this one's is."""
    if world_size() == 1:
        return [tensor]
    with reaching_others():
        sent = _sendable(tensor.contiguous())
        parts = [torch.empty_like(sent) for _ in range(world_size())]
        dist.all_gather(parts, sent)
    return [part.to(tensor.device) for part in parts]


def gather_objects(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with reaching_others():
        dist.all_gather_object(values, value)
    return values


def on_main(work: Callable[[], T]) -> T:
    """What ``work()`` returns in the main process, in all of them, or the error that it raises there in all of them."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error if _survives_pickling(error) else RuntimeError(f"{type(error).__name__}: {error}")
    with reaching_others():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def wait() -> None:
    """Wait until every process of the job is here."""
    gather_objects(None)


def require_equal(values: Mapping[str, Any]) -> None:
    """SlamkernError, naming the first, where a process has another value than the main one."""
    found = gather_objects(dict(values))
    for other, theirs in enumerate(found):
        for name, value in found[0].items():
            if theirs.get(name) != value:
                raise SlamkernError(f"{name} of process {other} is not that of process 0; give all of them the same")


def first_to_fail() -> bool:
    """Whether no other process of the job has failed before: what follows from its failure need not be said again."""
    if launched() < 2:
        return True
    try:
        return launchers_store().add("slamkern/failed", 1) == 1
    except (KeyError, RuntimeError):  # no store, or it went with the main process
        return True


def launchers_store() -> dist.TCPStore:
    """The launcher's store of values that all processes see."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=5),
    )  # fmt: skip


def leave() -> None:
    """At the end of a program: leave the job, which torch wants said."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _sendable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy on the GPU where the process group reaches no others."""
    if tensor.device.type == "cpu" and "cpu" not in dist.get_backend_config():
        return tensor.cuda()
    return tensor


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


@contextmanager
def reaching_others() -> Iterator[None]:
    """Turn what torch says when a process is gone, or silent for too long, into one line."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch means that a process is gone; gloo's have no class of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def lost(error: BaseException) -> SlamkernError:
    """What to raise for it."""
    others, words = f"{launched()} processes of this job", str(error).strip().partition("\n")[0]
    return SlamkernError(f"another of the {others} ended or does not answer ({words}); start it again")
