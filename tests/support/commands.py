"""Commands as tests call them: data that takes a second, and what a refusal looks like."""

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
