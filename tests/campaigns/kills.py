"""Runs that are killed with SIGKILL at random moments, and what a resumed one lost against an unbroken one."""

import contextlib
import json
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.tiny_run import tiny_run
from tqdm import tqdm

from slamkern.digests import tensor_digests
from slamkern.files import load_tensors, read_checked
from slamkern.pipeline import run
from slamkern.pipeline.config import RunConfig
from slamkern.pipeline.verify import verify

# What a run logs when a stage begins; loading the model comes before all of them.
BEGINS = {
    "probe ...": "probe", "select ...": "select", "before ...": "before", "the first training": "train",
    "after ...": "after", "report ...": "report",
}  # fmt: skip
STAGES = ("load", *BEGINS.values())
# What depends on the clock, the machine or the process.
VOLATILE = {
    "metrics.json": {"made", "seconds", "tokens_per_second", "peak_memory_bytes", "sha256"},
    "run.json": {"seconds", "sha256"},
    "metrics.jsonl": {"tokens_per_second", "peak_memory_bytes", "sha256"},
}


def run_to_kill(folder: Path) -> RunConfig:
    """The tiny run with several steps, checkpoints and answers, so that a kill may fall between any two."""
    config = tiny_run(folder)
    train = replace(config.train, max_steps=6, save_steps=2)
    evaluate = config.evaluate.model_copy(update={"limit": 3, "batch_size": 1})
    return config.model_copy(update={"train": train, "evaluate": evaluate})


class Child:
    """A run in a process of its own, forked so that nothing is imported again; it tells which stage it is in."""

    def __init__(self, config: RunConfig, out: Path) -> None:
        self._reader, writer = os.pipe()
        self.began: dict[str, float] = {"load": time.monotonic()}
        self.status: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reader)
            _work(config, out, writer)
        os.close(writer)

    @property
    def stage(self) -> str:
        """The stage that began last."""
        return list(self.began)[-1]

    def follow(self, stage: str | None = None) -> bool:
        """Wait until a stage, or one after it, begins; False where the run ended before. None: until it ends."""
        while stage is None or STAGES.index(self.stage) < STAGES.index(stage):
            if not (told := os.read(self._reader, 1)):
                return False
            self.began[STAGES[told[0]]] = time.monotonic()
        return True

    def kill(self) -> bool:
        """Whether the run was still at work when it was killed."""
        os.kill(self._pid, signal.SIGKILL)
        return os.WIFSIGNALED(self._wait())

    def finish(self) -> int:
        """The exit status of the whole run."""
        self.follow()
        return self._wait()

    def _wait(self) -> int:
        self.follow()  # what was told between the last look and the end
        os.close(self._reader)
        self.status = os.waitpid(self._pid, 0)[1]
        return self.status


def _work(config: RunConfig, out: Path, writer: int) -> None:
    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            for begins, stage in BEGINS.items():
                if message.startswith(begins):
                    os.write(writer, bytes([STAGES.index(stage)]))

    status = 1
    try:
        tqdm.set_lock(threading.RLock())  # its own is shared between processes, and would stay held by a killed one
        logger = logging.getLogger("slamkern")
        logger.addHandler(Teller())
        logger.setLevel(logging.INFO)
        run.run(config, out, progress=False)
        status = 0
    finally:
        os._exit(status)


def kill_in(config: RunConfig, out: Path, stage: str, moment: float) -> str | None:
    """Start or resume a run and kill it ``moment`` seconds into a stage; the stage it fell in, None if it was done."""
    child = Child(config, out)
    if child.follow(stage):
        time.sleep(moment)
    return child.stage if child.kill() else None


def seconds_of(child: Child, end: float) -> dict[str, float]:
    """How long each stage of a finished run took."""
    times = [*child.began.values(), end]
    return {stage: after - begin for stage, begin, after in zip(child.began, times, times[1:], strict=False)}


def lost(out: Path, expected: Path) -> str:
    """The first file in which a run differs from the unbroken one, or ``equal``."""
    ours, theirs = (dict(_values(folder)) for folder in (out, expected))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return name
    return "equal" if not verify(out)[1] else "verify"


def _values(folder: Path) -> Iterator[tuple[str, Any]]:
    """What must be the same in two runs of one configuration, file by file; whatever is left over is a file too."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name == "report.html":  # the page shows the times too
            yield name, "is there"
        elif path.suffix == ".safetensors":  # their header is in another order each time
            tensors, metadata = load_tensors(path, "tensor")
            yield name, (tensor_digests(tensors), metadata)
        elif path.suffix == ".json" and path.name in VOLATILE:
            yield name, _steady(read_checked(path), VOLATILE[path.name])
        elif path.suffix == ".jsonl" and path.name in VOLATILE:
            rows = map(json.loads, path.read_text().splitlines())
            yield name, [_steady(row, VOLATILE[path.name]) for row in rows]
        else:
            yield name, path.read_bytes()


def _steady(values: dict[str, Any], volatile: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in volatile}


def trial(number: int, config: RunConfig, out: Path, durations: dict[str, float], whole: Path) -> dict[str, Any]:
    """Kill a run, every other one again while it is resumed, then let it end: where it was killed and what it lost.

    The stages take turns, so that the short ones are hit as often as the long ones; the moment within is random.
    """
    draw = random.Random(number)
    stage = STAGES[number % len(STAGES)]
    fell = [kill_in(config, out, stage, draw.uniform(0, durations[stage]))]
    if number % 2 and fell[0] is not None:
        later = draw.choice(STAGES[STAGES.index(fell[0]) :])
        fell.append(kill_in(config, out, later, draw.uniform(0, durations[later])))
    status = Child(config, out).finish()
    with contextlib.suppress(OSError):
        return {"killed": fell, "outcome": lost(out, whole) if status == 0 else "not resumed"}
    return {"killed": fell, "outcome": "unreadable"}
