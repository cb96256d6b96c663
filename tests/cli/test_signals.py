"""How a process ends: by a signal in the middle of a training, and by a bug. Real processes, real signals."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import arguments, finish, start
from support.tiny_causal_lm import save_folder

from slamkern.cli.main import main
from slamkern.pipeline.verify import verify
from slamkern.selection.layers import LayerSelection
from slamkern.training import loop
from slamkern.training.checkpoint import list_checkpoints


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not begin to train"
        time.sleep(0.02)


@pytest.fixture
def train(tmp_path: Path) -> list[str]:
    """``slamkern train`` for longer than anybody waits, into ``out``."""
    save_folder(tmp_path / "model")
    LayerSelection((0,), k=1).save(tmp_path / "selection.json")
    data = ["--data", "corpus:", "-l", "de", "-s", "data.limit=4", "-s", "data.held_out=1"]
    recipe = ["-s", "train.max_steps=5000", "-s", "train.prompt=authors"]
    arguments = ["train", "--model", str(tmp_path / "model"), "--selection", str(tmp_path / "selection.json")]
    return [*arguments, *data, *recipe, "--out", str(tmp_path / "out")]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_training_and_is_the_status(
    train: list[str], tmp_path: Path, number: int, status: int
) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"
    child = start(train, errors)
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") > 2)
    os.kill(child, number)
    assert finish(child) == status, errors.read_text()
    assert errors.read_text().splitlines()[-1] == "interrupted; the same command with --resume goes on"
    (checkpoint,) = list_checkpoints(out)
    assert checkpoint.name == f"checkpoint-{(out / 'metrics.jsonl').read_text().count(chr(10))}"
    assert verify(out)[1] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("name", ["evaluate", "probe", "export"])
def test_a_signal_to_any_command_is_said_and_leaves_nothing_half_done(
    name: str, number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> None:
        (tmp_path / "began").touch()
        time.sleep(120)

    monkeypatch.setattr("slamkern.evaluation.accuracy.generate", slow)
    monkeypatch.setattr("slamkern.pipeline.stages.probe_model", slow)
    monkeypatch.setattr("slamkern.files._sync", slow)  # the export is in its temporary folder
    out, errors = tmp_path / "new/out", tmp_path / "errors"
    command = arguments(name, str(save_folder(tmp_path / "model")), tmp_path, out)
    if name == "export":
        del command[1:3]  # its delta
    child = start(command, errors)
    wait_for((tmp_path / "began").exists)
    os.kill(child, number)
    assert finish(child) == status, errors.read_text()
    assert errors.read_text().splitlines()[-1].startswith("interrupted")
    assert not list(tmp_path.glob("new/**/.*"))


def test_handlers_are_those_of_before(tmp_path: Path) -> None:
    """A program that calls the command line has its own, and under nohup SIGHUP is ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    main(["--version"])
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_bug_ends_in_one_line_and_status_1(train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug\nof ours")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(loop, "train", broken)
    assert finish(start(train, tmp_path / "errors")) == 1
    details = tmp_path / "out/slamkern-error.log"
    last = (tmp_path / "errors").read_text().splitlines()[-1]
    assert last == f"error: ZeroDivisionError: a bug (details in {details})"
    assert "Traceback" in details.read_text() and "Traceback" not in (tmp_path / "errors").read_text()
