"""The command line: each command's own result, and one line with exit status 2 for whatever a caller gets wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

import slamkern
from slamkern.cli.commands import app
from slamkern.cli.main import main
from slamkern.training import loop

SMALL = ["-l", "de,zh", "-s", "data.limit=12", "-s", "data.held_out=2", "-s", "probe.questions=4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def work(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """probe, select and train as commands, each in a folder of its own."""
    work = tmp_path_factory.mktemp("work")
    data = ["--data", "corpus:", *SMALL]
    assert main(["probe", "--model", model, *data, "--out", str(work / "probe")]) == 0
    assert main(["select", str(work / "probe"), "-k", "1", "--region", "all", "--out", str(work / "selection")]) == 0
    arguments = ["--model", model, *data, "--selection", str(work / "selection"), "--out", str(work / "train")]
    recipe = ["-s", "train.max_steps=2", "-s", "train.learning_rate=0.01", "-s", "train.prompt=authors"]
    assert main(["train", *arguments, *recipe]) == 0
    return work


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The command ends with status 2 and one line on stderr that holds all ``words``."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error


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
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"].strip() == torch.__version__
    assert "reference" in lines
    for client in ("accelerate", "gguf", "kernels", "liger-kernel", "lm-eval", "peft", "trl"):
        assert client in lines
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"slamkern {slamkern.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prob"], ["No such command"]),
        (["probe"], ["--out"]),
        (["probe", "--data", "corpus:", "--out", "OUT"], ["no model given"]),
        (["train", "--selection", "s", "--out", "OUT", "--memory-budget", "lots"], ["'lots' is no amount", "24GB"]),
        (["probe", "--model", "MODEL", "--out", "OUT"], ["no data"]),
        (["probe", "--model", "MODEL", "--data", "corpus:", "-l", "xx", "--out", "OUT"], ["unknown language 'xx'"]),
        (["probe", "--model", "./absent", "--data", "corpus:", "--out", "OUT"], ["no model folder ./absent"]),
        (["probe", "--model", "demo", "--data", "corpus:", "--out", "OUT"], ["slamkern demo"]),
        (["probe", "--model", "x.gguf", "--data", "corpus:", "--out", "OUT"], ["no model file x.gguf"]),
        (["probe", "--model", "no/such-model", "--data", "corpus:", "--out", "OUT"], ["cannot load", "no/such-model"]),
        (
            ["probe", "--model", "MODEL", "--data", "corpus:", "--out", "OUT", "-s", "model.dtyp=float16"],
            ["model.dtype?"],
        ),
        (["probe", "--model", "MODEL", "--data", "corpus:", "--out", "OUT", "-s", "model.device=gpu9"], ["'gpu9'"]),
        (["run", "--config", "absent.yaml", "--out", "OUT"], ["absent.yaml"]),
        (["probe", "--model", "123", "-l", "de,no", "--data", "corpus:", "--out", "OUT"], ["has no language 'no'"]),
        (["probe", "--model", "123", "-l", "de", "--data", "corpus:", "--out", "OUT"], ["cannot load model '123'"]),
        (["run", "--model", "MODEL", "--data", "RAGGED", "--out", "OUT"], ["3 lines", "2", "not parallel"]),
        (["run", "--model", "MODEL", "--data", "EMPTY", "--out", "OUT"], ["train.de is empty"]),
        (["demo", "--model", "gpt9", "--out", "OUT"], ["'gpt9'", "tiny or smollm2"]),
        (["demo", "--set", "train.lr=1", "--out", "OUT"], ["train.lr"]),
        (["select", "PROBE", "-k", "7", "--out", "OUT"], ["k is 7"]),
        (["select", "PROBE", "-s", "select.rule=list:0,9", "--out", "OUT"], ["out of range: 9"]),
        (["select", "PROBE", "--score", "activ", "--out", "OUT"], ["unknown score 'activ'"]),
        (["select", "PROBE", "-s", "select.preset=slam-70b", "--out", "OUT"], ["slam-7b-paper"]),
        (["select", "TRUNCATED", "--out", "OUT"], ["stats.safetensors"]),
        (["select", "MODEL/model.safetensors", "--out", "OUT"], ["model.safetensors"]),
        (["export", "--model", "MODEL", "--delta", "PROBE/stats.safetensors", "--out", "OUT"], ["stats.safetensors"]),
        (["score", "absent.jsonl"], ["absent.jsonl"]),
        (["report", "EMPTY"], ["nothing to report"]),
        (["evaluate", "--model", "MODEL", "--task", "gsm", "--out", "OUT"], ["unknown task 'gsm'"]),
        (["evaluate", "--model", "MODEL", "--task", "mgsm", "--data", "EMPTY", "-l", "de", "--out", "OUT"], ["mgsm"]),
    ],
)
def test_bad_input(
    arguments: list[str], words: list[str], work: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lines in (("ragged", "a\nb\nc\n"), ("empty", "")):
        (tmp_path / name / "de-en").mkdir(parents=True)
        (tmp_path / name / "de-en/train.de").write_text(lines)
        (tmp_path / name / "de-en/train.en").write_text("a\nb\n")
    (tmp_path / "stats.safetensors").write_bytes((work / "probe/stats.safetensors").read_bytes()[:-100])
    places = {
        "OUT": tmp_path / "out", "MODEL": model, "PROBE": work / "probe", "RAGGED": tmp_path / "ragged",
        "EMPTY": tmp_path / "empty", "TRUNCATED": tmp_path / "stats.safetensors",
    }  # fmt: skip
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    fails(arguments, capsys, *words)
    assert not (tmp_path / "out").exists()


def test_unusable_models(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown type, no FFN that can be fused, weights that are not finite, a selection for another model."""
    from transformers import AutoModelForCausalLM, BioGptConfig

    unknown, biogpt, broken, other = (tmp_path / name for name in ("unknown", "biogpt", "broken", "other"))
    for folder in (unknown, biogpt, broken, other):
        tiny_tokenizer().save_pretrained(folder)
    (unknown / "config.json").write_text('{"model_type": "nosuchmodel"}')
    # Its FFN is a part of the decoder layer, no module of its own.
    config = BioGptConfig(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(biogpt)
    poisoned = tiny_model()
    with torch.no_grad():
        poisoned.model.layers[1].mlp.gate_proj.weight[3, 5] = float("nan")
    poisoned.save_pretrained(broken)
    torch.manual_seed(0)
    from transformers import LlamaForCausalLM

    wider = tiny_model().config
    wider.intermediate_size = 80
    LlamaForCausalLM(wider).save_pretrained(other)

    def probe(folder: Path) -> list[str]:
        return ["probe", "--model", str(folder), "--data", "corpus:", *SMALL, "--out", str(tmp_path / "out")]

    fails(probe(unknown), capsys, "nosuchmodel")
    fails(probe(biogpt), capsys, "FFN")
    fails(probe(broken), capsys, "NaN")
    train = [
        "train",
        "--data",
        "corpus:",
        *SMALL,
        "--selection",
        str(work / "selection"),
        "--out",
        str(tmp_path / "out"),
    ]
    fails([*train, "--model", str(other)], capsys, "probe and select again")
    assert not (tmp_path / "out").exists()


def test_output_of_another_run(work: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--model", model, "--data", "corpus:", *SMALL]
    fails(["probe", *data, "--out", str(work / "probe")], capsys, "stats.safetensors exists")
    fails(["select", str(work / "probe"), "-k", "1", "--out", str(work / "selection")], capsys, "selection.json exists")
    train = ["train", *data, "--selection", str(work / "selection"), "--out", str(work / "train")]
    fails(train, capsys, "already holds a run")
    fails([*train, "--resume"], capsys, "another run")


def test_full_disk(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    fails(["select", str(work / "probe"), "-k", "1", "--out", str(tmp_path)], capsys, "No space left on device")
    assert list(tmp_path.iterdir()) == []


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


def test_nothing_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["score", str(tmp_path / "\x1b[31mred")], capsys, r"\x1b[31mred")


def test_an_out_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    probe = ["probe", "--model", "no/such-model", "--data", "corpus:", "--out"]
    fails([*probe, str(tmp_path / "dangling")], capsys, "is a link to nowhere, which does not exist")
    fails([*probe, os.fsdecode(os.fsencode(tmp_path) + b"/\xff")], capsys, "is not UTF-8")
