"""Commands as tests call them: data that takes a second, and what a refusal looks like."""

import os
import signal
import sys
from pathlib import Path

import pytest

from slamkern.cli.main import main

SMALL = ["-l", "de,zh", "-s", "data.limit=12", "-s", "data.held_out=2", "-s", "probe.questions=4"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The command ends with status 2 and one line on stderr that holds all ``words``."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error


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
