"""Several processes of one job, as a launcher starts them, but forked: nothing is imported again."""

import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState  # imported before the fork, once for all

from slamkern.errors import SlamkernError


def launch(count: int, work: Callable[[int], Any], *, seconds: float = 240, dies: tuple[int, ...] = ()) -> list[Any]:
    """What ``work(rank)`` returned in each of ``count`` processes, or the SlamkernError or exit it ended with.

    Fails the test where one takes longer, or dies without being among those that are to.
    """
    # The store outlives the processes, as that of a launcher's agent does.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        children = [_start(rank, count, store.port, work, Path(folder)) for rank in range(count)]
        deadline = time.monotonic() + seconds
        waiting = dict(enumerate(children))
        while waiting and time.monotonic() < deadline:
            for rank, child in list(waiting.items()):
                if os.waitpid(child, os.WNOHANG)[0]:
                    del waiting[rank]
            time.sleep(0.01)
        for child in waiting.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert not waiting, f"processes {list(waiting)} took longer than {seconds} s"
        results = []
        for rank in range(count):
            path = Path(folder) / str(rank)
            assert path.exists() or rank in dies, f"process {rank} died"
            result = pickle.loads(path.read_bytes()) if path.exists() else None
            assert not (isinstance(result, str) and result.startswith("Traceback")), f"process {rank}: {result}"
            results.append(result)
        return results


def _start(rank: int, count: int, port: int, work: Callable[[int], Any], folder: Path) -> int:
    if child := os.fork():
        return child
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)  # that of a Trainer in the tests before
    try:
        try:
            result = work(rank)
        except (SlamkernError, OSError, KeyboardInterrupt, SystemExit) as error:
            result = error
        except BaseException:
            result = traceback.format_exc()
        (folder / f"{rank}.tmp").write_bytes(pickle.dumps(result))
        (folder / f"{rank}.tmp").rename(folder / str(rank))
    finally:
        os._exit(0)
