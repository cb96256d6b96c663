"""Two processes on one target: one does its work, the other says who is there in one line, whatever the command."""

import os
import time
from pathlib import Path

import pytest
from support.commands import COMMANDS, arguments, fails, finish, start

from slamkern.cli.main import main
from slamkern.run_folder import HeldFolder
from slamkern.schemas.training import read_delta
from slamkern.selection.layers import LayerSelection

WHOLE = ("export", "lora", "fold")  # what they write appears at once, so that nothing of theirs can be inside


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_in_use_is_refused(
    name: str, model: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    with HeldFolder(out, beside=name in WHOLE):
        fails(arguments(name, model, work, out), capsys, "out is in use by process", "choose another folder")
    assert not out.exists() and not list(tmp_path.glob("new/.*"))


@pytest.mark.parametrize("name", ["select", "export", "scale"])
def test_of_two_at_once_one_works(
    name: str, model: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(descriptor: int, sync=os.fsync) -> None:
        time.sleep(0.2)  # the other one comes meanwhile
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slowly)
    out = tmp_path / "out"
    children = [start(arguments(name, model, work, out), tmp_path / f"errors{number}") for number in range(2)]
    statuses = [finish(child) for child in children]
    assert sorted(statuses) == [0, 2]
    errors = (tmp_path / f"errors{statuses.index(2)}").read_text()
    assert "out is in use by" in errors.splitlines()[-1]
    written = {path.name for path in out.iterdir()}
    if name == "select":
        assert written == {"selection.json"} and LayerSelection.load(out / "selection.json").layers
    elif name == "scale":
        assert written == {"delta.safetensors", "selection.json"} and read_delta(out)[1]
    else:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= written
    assert not list(tmp_path.glob(".*"))


def test_a_comparison_into_a_folder_in_use(
    model: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = str(tmp_path / "answers")
    assert main(arguments("evaluate", model, work, tmp_path / "answers")) == 0
    with HeldFolder(tmp_path / "out"):
        fails(["compare", answers, answers, "--out", str(tmp_path / "out")], capsys, "out is in use by process")
