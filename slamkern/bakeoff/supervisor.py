"""Runs a bake-off: what is not done yet, in processes of their own, some at a time; the same command goes on.

Started by ``accelerate launch`` or ``torchrun``, every process of the job takes what is next and works on it alone, on
the GPU that is its own: cells are many and need nothing of each other.

    bakeoff.json           the record: sections, the cells as they were run, the hash of the base model's weights
    replies.json, stats.safetensors, weight_snr.json, gradient_norm.json     what is known of the base model
    cells/NAME/seed-N/     train/ (log, checkpoints, delta), screen.json, final.json and the answers of each
    logs/                  what the processes said
    table.csv, table.json, report.html     made again after a process, at most every minute, and at the end

On a machine that others use too, threads that wait for each other lose most of their time: a process has as many
threads as are asked for, and while the pause file exists all of them are stopped. Cells, seeds, finalists and a final
may be added between two runs; a cell that was run keeps what it was run as, a final what it asks.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slamkern import distributed
from slamkern.bakeoff.board import Board
from slamkern.bakeoff.config import BASE, Bakeoff, Cell
from slamkern.bakeoff.layers import GRADIENT_NORM, STATS, WEIGHT_SNR, check_layers_of, needed_files
from slamkern.bakeoff.page import write_page
from slamkern.bakeoff.rows import finalists, read_rows
from slamkern.bakeoff.table import write_table
from slamkern.bakeoff.work import KIND, RECORD, REPLIES
from slamkern.data.pairs import Pair
from slamkern.errors import SlamkernError
from slamkern.pipeline.checks import check_evaluation, check_model, check_training
from slamkern.pipeline.launch import Launch
from slamkern.pipeline.stages import alignment_pairs, english_texts
from slamkern.run_folder import RunFolder, difference
from slamkern.training.interrupt import ended_by_signals

RESULTS = ("cells", REPLIES, STATS, WEIGHT_SNR, GRADIENT_NORM)
SECONDS_BETWEEN_TABLES = 60


@dataclass
class Task:
    """One process: done when its file is there, started when those of ``after`` are."""

    name: str
    arguments: tuple[str, ...]
    file: Path
    after: tuple[Path, ...] = ()
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def tasks_of(bakeoff: Bakeoff, folder: Path) -> list[Task]:
    """Everything there is to do as far as it is known, in order; the final only when the screen is done."""
    tasks = {REPLIES: Task(REPLIES, (REPLIES,), folder / REPLIES)}
    trainers: dict[tuple[str, int], Path] = {}  # cell that is trained and seed -> file of the first task that does it

    def add(cell: Cell, seed: int, name: str) -> None:
        trained = bakeoff.trained(cell)
        needed = needed_files(trained)
        for file in needed:  # measured when the first cell needs it
            first = (folder / REPLIES,) if file == GRADIENT_NORM else ()
            tasks.setdefault(file, Task(file, (file,), folder / file, first))
        after = [folder / file for file in (REPLIES, *needed)]
        arguments = (cell.name, "--seed", str(seed), *(("--final",) if name == "final" else ()))
        path = folder / "cells" / cell.name / f"seed-{seed}" / f"{name}.json"
        if (trainer := trainers.setdefault((trained.name, seed), path)) != path:  # two may not train the same at once
            after.append(trainer)
        task = Task(f"{cell.name}-{seed}-{name}", arguments, path, tuple(after))
        tasks[task.name] = task

    for cell in bakeoff.cells.values():
        for seed in bakeoff.seeds_of(cell):
            add(cell, seed, "screen")
    if bakeoff.bakeoff.final is not None and all(task.file.exists() for task in tasks.values()):
        chosen = [bakeoff.cells[name] for name in (BASE, *finalists(bakeoff, folder))]
        for turn in range(len(bakeoff.bakeoff.final.seeds)):  # one that is stopped has every cell with a seed
            for cell in chosen:
                for seed in bakeoff.seeds_of(cell, final=True)[turn : turn + 1]:
                    add(cell, seed, "final")
    return list(tasks.values())


def run(
    bakeoff: Bakeoff,
    out: Path,
    *,
    lanes: int = 1,
    threads: int | None = None,
    pause: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Work through the cells, ``lanes`` processes at a time; returns the names of the tasks that failed.

    Of several processes of a job, each works through what the others have not taken, with so many lanes.

    SlamkernError before anything is written for a folder of another bake-off, a cell that was run as something else,
    and as :func:`check_bakeoff`.
    """
    check_bakeoff(bakeoff)
    with ended_by_signals(), RunFolder(out, KIND, record=RECORD, results=RESULTS) as folder:
        _claim(folder, bakeoff)
        shared = lanes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return _work(bakeoff, out, lanes, threads or max(1, (os.cpu_count() or 1) // shared), pause, say)


def check_bakeoff(bakeoff: Bakeoff) -> tuple[Sequence[Pair], list[Pair]]:
    """(pairs to train on, held-out pairs). SlamkernError for layers that the model does not have, and absent data."""
    pairs = alignment_pairs(bakeoff.run)
    num_layers = check_model(bakeoff.run.model)
    for cell in bakeoff.cells.values():
        check_layers_of(cell, num_layers)
    check_training(bakeoff.run, *pairs, Launch())  # each cell is trained by a process alone
    for final in (False, True):
        config = bakeoff.of(bakeoff.cells[BASE], 0, final=final)
        check_evaluation(config, config.evaluate.load())
        english_texts(config, pairs[1])
    return pairs


def _claim(folder: RunFolder, bakeoff: Bakeoff) -> None:
    """Hold the folder for this bake-off: its sections must be those of before, its cells those that were run."""
    section = bakeoff.bakeoff.model_dump(mode="json", exclude={"cells"})
    # What a cell does not name has no meaning for some of them.
    cells = {cell.name: cell.model_dump(mode="json", exclude_unset=True) for cell in bakeoff.bakeoff.cells}
    values = bakeoff.run.model_dump(mode="json")
    values["train"].pop("output_dir", None)
    before = {cell["name"]: cell for cell in folder.notes.get("cells", [])}
    if had := folder.settings.get("bakeoff"):  # how much is measured may change, not what was asked in the final
        asked = had["final"] if any(folder.path.glob("cells/*/seed-*/final*")) else None
        kept = {"final": {**(section["final"] or {}), "evaluate": asked["evaluate"]}} if asked else {}
        folder.settings["bakeoff"] = section | kept
    folder.claim({"run": values, "bakeoff": section})
    for name, cell in before.items():
        if not any((folder.path / "cells" / name).glob("seed-*/*")):
            continue
        if name not in cells:
            cells[name] = cell
        elif change := difference({**cell, "why": ""}, {**cells[name], "why": ""}):
            raise SlamkernError(f"{folder.path}: cell {name} was run, and {change}; call the changed one otherwise")
    folder.notes = {**folder.notes, "cells": list(cells.values())}
    distributed.on_main(folder.save)  # every process waits: from here on its tasks read and note there


def _work(
    bakeoff: Bakeoff, out: Path, lanes: int, threads: int, pause: Path | None, say: Callable[[str], None]
) -> list[str]:
    board = Board()
    running: list[Task] = []
    tasks = tasks_of(bakeoff, out)
    paused = False
    written = time.monotonic()
    who = f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""

    def tell(task: Task, what: str) -> None:
        say(f"{time.strftime('%H:%M:%S')} {who}{task.name} {what}")

    try:
        while True:
            if pause is not None and pause.exists() != paused:
                paused = not paused
                for task in running:
                    task.send(signal.SIGSTOP if paused else signal.SIGCONT)
            for task in [task for task in running if task.ended]:
                running.remove(task)
                board.end(task.name)
                tell(task, "done" if task.file.exists() else _last_words(out, task))
                if distributed.is_main() and time.monotonic() - written > SECONDS_BETWEEN_TABLES:
                    write_results(bakeoff, out)
                    written = time.monotonic()
            busy = board.busy  # before looking: where nobody worked, everything that can be begun is seen
            free = len(running) < lanes and not paused
            if free and all(task.file.exists() for task in tasks):
                tasks = tasks_of(bakeoff, out)  # the final, whose cells take seconds to choose
            following = _next(tasks, board) if free else None
            if following is not None:
                running.append(following)  # before it begins: a signal may come at any time
                _start(following, out, threads)
                tell(following, "started")
            elif paused or busy or board.busy:
                time.sleep(0.2)
            else:
                break
        if distributed.is_main():
            write_results(bakeoff, out)
        return [task.name for task in tasks if not task.file.exists() and board.taken(task.name)]
    finally:
        for task in running:
            task.send(signal.SIGCONT)
            task.send(signal.SIGTERM)
        for task in running:  # training saves before it ends
            if task.process is not None:
                task.process.wait()


def write_results(bakeoff: Bakeoff, folder: Path) -> None:
    """``table.json``, ``table.csv`` and ``report.html`` of what there is so far."""
    if rows := read_rows(bakeoff, folder):
        write_table(rows, folder)
        write_page(bakeoff, rows, folder)


def _next(tasks: Sequence[Task], board: Board) -> Task | None:
    ready = (task for task in tasks if not task.file.exists() and all(path.exists() for path in task.after))
    return next((task for task in ready if board.take(task.name)), None)


def _start(task: Task, out: Path, threads: int) -> None:
    log = out / "logs" / f"{task.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "slamkern.bakeoff.work", str(out), *task.arguments]
    environment = distributed.environment_alone() | {"OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as lines:
        # A group of its own: Ctrl-C reaches it through `finally`, once.
        task.process = subprocess.Popen(command, stdout=lines, stderr=lines, env=environment, start_new_session=True)


def _last_words(out: Path, task: Task) -> str:
    log = out / "logs" / f"{task.name}.log"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"FAILED: {lines[-1] if lines else 'without a word'} ({log})"
