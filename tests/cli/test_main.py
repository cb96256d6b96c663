"""The command line: each command's own result, and how it ends when something else ends it."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import SMALL, fails

import slamkern
from slamkern.cli.commands import app
from slamkern.cli.main import main
from slamkern.ops.dispatch import backends
from slamkern.training import loop

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_command_has_help(capfd: pytest.CaptureFixture[str]) -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__
        assert main([name, "--help"]) == 0
        assert name in capfd.readouterr().out  # of this process or of what it starts


def test_probe_select_train_export(work: Path, model: str) -> None:
    selection = json.loads((work / "selection/selection.json").read_text())
    assert len(selection["layers"]) == 1
    assert main(["export", "--model", model, "--delta", str(work / "train"), "--out", str(work / "full")]) == 0
    before, after = load_file(Path(model) / "model.safetensors"), load_file(work / "full/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layer = selection["layers"][0]
    assert changed == {f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("up", "down")}
    assert main(["report", str(work / "selection")]) == 0
    assert (work / "selection/report.html").is_file()


def test_a_probe_says_that_fsdp_does_not_shard_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["probe", "--model", model, "--data", "corpus:", *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("here each process holds the whole model") == 1


def test_evaluate_and_score_agree(work: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "evaluation"
    arguments = ["--model", model, "--delta", str(work / "train"), "--task", "corpus", "-l", "en,sw", "--limit", "2"]
    short = ["-s", "evaluate.prompt=authors", "-s", "evaluate.max_new_tokens=6"]
    assert main(["evaluate", *arguments, *short, "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert "prompt: authors" in first and "rule:" in first
    assert main(["score", str(out), "--out", str(out)]) == 0
    # The languages come in the order of the file, which is that of the finished answers.
    assert sorted(capsys.readouterr().out.splitlines()[:-1]) == sorted(first.splitlines()[:-1])
    assert json.loads((out / "scores.json").read_text())["n"] == {"en": 2, "sw": 2}
    other_delta = ["evaluate", *arguments, "-s", "evaluate.max_new_tokens=7", "--out", str(out)]
    fails(other_delta, capsys, "holds another run: prompt was")


def test_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    lines = dict(line.split(None, 1) for line in printed.splitlines())
    assert lines["torch"].strip() == torch.__version__
    assert "reference" in lines
    for client in ("accelerate", "gguf", "kernels", "liger-kernel", "lm-eval", "peft", "trl"):
        assert client in lines
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    used = {each for name, needed in extras.items() if name not in ("test", "dev", "fuzz") for each in needed}
    assert {re.split("[><=; ]", each)[0] for each in used} <= lines.keys()
    for backend, reason in backends("cpu").items():
        assert f"{backend} on cpu" in printed and (reason is None or reason in printed)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"slamkern {slamkern.__version__}\n"


@pytest.mark.parametrize(("command", "hint"), [("train", "--resume"), ("run", "same command")])
def test_interrupt(
    command: str, hint: str, work: Path, model: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupt)
    arguments = [
        command,
        "--model",
        model,
        "--data",
        "corpus:",
        *SMALL,
        "--out",
        str(tmp_path / "out"),
        "-s",
        "select.k=1",
    ]
    arguments += ["--selection", str(work / "selection")] if command == "train" else ["-s", "evaluate.task=null"]
    assert main([*arguments, "-s", "evaluate.chrf_limit=0"]) == 130
    assert hint in capsys.readouterr().err.splitlines()[-1]


def test_a_bug_is_one_line_and_its_traceback_is_kept(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In --out where that folder is there, in a file of its own where not; on the screen only with -v."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("lost\nand found")

    monkeypatch.setattr("slamkern.pipeline.stages.choose_layers", broken)
    command = ["select", str(work / "probe"), "--out"]
    for out in (tmp_path, tmp_path / "absent"):
        assert main([*command, str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: KeyError: 'lost")
        details = Path(line.rpartition("(details in ")[2].removesuffix(")"))
        assert "Traceback" in details.read_text() and str(out) in details.read_text()
        assert (details.parent == tmp_path) == (out == tmp_path)
    details.unlink()
    assert main(["-v", *command, str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] . can't allocate memory")])
def test_where_memory_is_not_enough_it_is_said_what_to_lower(
    error: Exception, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("slamkern.pipeline.stages.choose_layers", broken)
    assert main(["select", str(work / "probe"), "--out", str(tmp_path)]) == 1
    assert "; lower train.tokens_per_batch, probe.token_budget, probe.groups or evaluate.batch_size" in (
        capsys.readouterr().err
    )
