"""Does alignment work, and with which recipe? A resumable study over recipes on a real model.

    python -m benchmarks.alignment --study FOLDER [--cells FILE] [--lanes N] [--pause-file FILE] [--table-only]

FOLDER holds ``study.json``: model, dtype, pairs, msvamp, prompt, answers, answer_tokens, new_tokens, batch_size. The
cells file is a list of recipes, read again whenever a process ends, so that cells may be added while it runs:

    name, why         what it is called, and the hypothesis it tests
    layers            the trained layers; none: the base model
    projections       of up, down, gate (default: up and down)
    mixture           examples of each kind, see ``alignment_work.examples``
    learning_rate, schedule, warmup_steps, epochs, tokens_per_batch, seed
    reply_start       words that the reply is made to begin with (a control: English without training)
    of, scale         instead of training: the delta of another cell, times this factor
    languages, questions   the MSVAMP questions that it is judged by: from the first number, exclusive, to the last

Work runs in single-threaded processes, ``--lanes`` of them at a time: on a machine that others use too, threads that
wait for each other lose most of their time. While the pause file exists they are stopped. The table is written to
benchmarks/results after every finished cell.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import alignment_table
from slamkern.files import write_json
from slamkern.reading import read_json

DEFAULTS: dict[str, Any] = {
    "why": "",
    "layers": [],
    "projections": ["up", "down"],
    "mixture": {},
    "learning_rate": 2e-5,
    "schedule": "cosine",
    "warmup_steps": 4,
    "epochs": 1,
    "tokens_per_batch": 1024,
    "seed": 0,
    "scale": 1.0,
    "reply_start": "",
    "languages": ["en", "de", "es", "sw", "th", "zh"],
    "questions": [0, 30],
}
PARTS = 2


class Task:
    """One process of the study: its name, its arguments, and the file that says it is done."""

    def __init__(self, study: Path, name: str, arguments: list[str], after: list[str] | None = None) -> None:
        self.name, self.after = name, after or []
        self.done_file = study / "done" / name
        self.command = [sys.executable, "-m", "benchmarks.alignment_work", *arguments, "--study", str(study)]
        self.log = study / "logs" / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def done(self) -> bool:
        return self.done_file.exists()

    def start(self) -> None:
        self.log.parent.mkdir(exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def poll(self) -> bool:
        """Whether the process has ended; a success is written down."""
        assert self.process is not None
        if self.process.poll() is None:
            return False
        if self.process.returncode == 0:
            self.done_file.parent.mkdir(exist_ok=True)
            self.done_file.touch()
        return True

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def tasks_of(study: Path, cells: Sequence[dict[str, Any]]) -> list[Task]:
    """Everything there is to do, in order: what finishes an earlier cell before what begins a later one."""
    answers = [Task(study, f"answer-{i}", ["answer", "--part", f"{i}/{PARTS}"]) for i in range(PARTS)]
    tasks = [] if all(set(cell["mixture"]) <= {"translate"} for cell in cells) else list(answers)
    for cell in cells:
        name, needs = cell["name"], []
        if cell["layers"] and "of" not in cell:
            own = [task.name for task in answers] if set(cell["mixture"]) - {"translate"} else []
            tasks.append(Task(study, f"{name}-train", ["train", "--cell", name], own))
            needs = [tasks[-1].name]
        elif "of" in cell:
            needs = [f"{cell['of']}-train"]
        first, last = cell["questions"]
        for i in range(PARTS):
            work = f"{name}-{''.join(cell['languages'])}-{first}-{last}-{i}"
            tasks.append(Task(study, work, ["evaluate", "--cell", name, "--part", f"{i}/{PARTS}"], needs))
    return tasks


def read_cells(study: Path, file: Path) -> list[dict[str, Any]]:
    """The cells with their defaults; each is also written to its folder, where its processes read it."""
    cells = [DEFAULTS | cell for cell in read_json(file)]
    for cell in cells:
        folder = study / "cells" / cell["name"]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "cell.json", cell)
    return cells


def run(study: Path, file: Path, lanes: int, pause: Path | None) -> None:
    """Work through the cells, ``lanes`` processes at a time, until nothing is left that can run."""
    running: list[Task] = []
    failed: set[str] = set()
    paused = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on where this one was"))
    try:
        while True:
            if pause is not None and pause.exists() != paused:
                paused = not paused
                for task in running:
                    task.send(signal.SIGSTOP if paused else signal.SIGCONT)
            if not paused:
                for task in [task for task in running if task.poll()]:
                    running.remove(task)
                    print(time.strftime("%H:%M:%S"), task.name, "done" if task.done else "FAILED", flush=True)
                    if not task.done:
                        failed.add(task.name)
                    alignment_table.write(study, read_cells(study, file))
                if len(running) < lanes:
                    _start_next(tasks_of(study, read_cells(study, file)), running, failed)
                if not running:
                    return
            time.sleep(1)
    finally:
        for task in running:
            task.send(signal.SIGCONT)
            task.send(signal.SIGTERM)


def _start_next(tasks: Sequence[Task], running: list[Task], failed: set[str]) -> None:
    done = {task.name for task in tasks if task.done}
    busy = failed | {task.name for task in running}
    for task in tasks:
        if task.name not in done | busy and set(task.after) <= done:
            task.start()
            running.append(task)
            print(time.strftime("%H:%M:%S"), task.name, "started", flush=True)
            return


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--cells", type=Path, help="default: cells.json in the study's folder")
    parser.add_argument("--lanes", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--pause-file", type=Path, help="while this file exists, the processes are stopped")
    parser.add_argument("--table-only", action="store_true", help="write the table of what there is")
    options = parser.parse_args(argv)
    file = options.cells or options.study / "cells.json"
    if not options.table_only:
        run(options.study, file, options.lanes, options.pause_file)
    alignment_table.write(options.study, read_cells(options.study, file), show=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
