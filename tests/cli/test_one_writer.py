"""Two processes on one target: one does its work, the other says who is there in one line, whatever the command."""

import os
import shutil
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


def test_scores_and_a_report_into_a_folder_in_use(
    model: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(work / "selection/selection.json", tmp_path / "run")
    assert main(arguments("evaluate", model, work, tmp_path / "answers")) == 0
    with HeldFolder(tmp_path / "run"):
        fails(["score", str(tmp_path / "answers"), "--out", str(tmp_path / "run")], capsys, "run is in use by process")
        fails(["report", str(tmp_path / "run")], capsys, "run is in use by process")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["selection.json"]
    fails(["report", str(tmp_path / "no/such")], capsys, "no/such")
    assert not (tmp_path / "no").exists()


def test_a_probe_does_not_replace_one_that_ended_meanwhile(
    model: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds the folder when this one begins, and has written when this one takes it."""
    out, enter = tmp_path / "out", HeldFolder.__enter__

    def ended(folder: HeldFolder) -> HeldFolder:
        shutil.copytree(work / "probe", out)
        return enter(folder)

    monkeypatch.setattr(HeldFolder, "__enter__", ended)
    fails(arguments("probe", model, work, out), capsys, "stats.safetensors exists")
