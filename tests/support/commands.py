"""Commands as tests call them: data that takes a second, and what a refusal looks like."""

import os
import signal
import sys
from pathlib import Path

import pytest

from slamkern.cli.main import main

SMALL = ["-l", "de,zh", "-s", "data.limit=12", "-s", "data.held_out=2", "-s", "probe.questions=4"]

SHORT = ["-s", "evaluate.max_new_tokens=2", "-s", "evaluate.prompt=authors"]
BASE = ["--model", "MODEL", "--out", "OUT"]
# Each that writes a folder once, with the places that ``arguments`` fills in.
COMMANDS = {
    "probe": ["probe", "--data", "corpus:", *SMALL, *BASE],
    "select": ["select", "WORK/probe", "-k", "1", "--region", "all", "--out", "OUT"],
    "train": ["train", "--selection", "WORK/selection", "--data", "corpus:", *SMALL, *BASE],
    "evaluate": ["evaluate", "--task", "corpus", "-l", "de", "--limit", "1", *SHORT, *BASE],
    "export": ["export", "--delta", "WORK/train", *BASE],
    "harness": ["harness", "--task", "corpus", "-l", "de", "--limit", "1", "--out", "OUT"],
    "scale": ["delta", "scale", "WORK/train", "--by", "0.5", *BASE],
    "merge": ["delta", "merge", "WORK/train", "WORK/train", *BASE],
    "revert": ["delta", "revert", "WORK/train", "--layers", "1", "--out", "OUT"],
    "sweep": ["delta", "sweep", "WORK/train", "--data", "corpus:", *SMALL, *BASE],
    "lora": ["delta", "lora", "WORK/train", "--rank", "2", *BASE],
    "fold": ["delta", "fold", "WORK/adapter", *BASE],
}


def arguments(name: str, model: str, work: Path, out: Path) -> list[str]:
    """The command of this name on a model and the folders that ``work`` in conftest.py made, into ``out``."""
    places = {"MODEL": model, "WORK": str(work), "OUT": str(out)}
    return ["/".join(places.get(part, part) for part in argument.split("/")) for argument in COMMANDS[name]]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The command ends with status 2 and one line on stderr that holds all ``words``."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error, error


def start(arguments: list[str], errors: Path) -> int:
    """The command in a process of its own, forked so that nothing is imported again; its stderr goes to a file."""
    if child := os.fork():
        return child
    status = 99
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # pytest has its own
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        status = main(arguments)
        sys.stderr.flush()
    finally:
        os._exit(status)


def finish(child: int) -> int:
    """Its exit status; minus the signal where that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
