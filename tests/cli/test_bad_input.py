"""What a caller gets wrong: one line, exit status 2, and nothing written."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from support.commands import SHORT, SMALL, fails
from support.tiny_causal_lm import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prob"], ["No such command"]),
        (["probe"], ["--out"]),
        (["probe", "--data", "corpus:", "--out", "OUT"], ["no model given"]),
        (["train", "--selection", "s", "--out", "OUT", "--memory-budget", "lots"], ["'lots' is no amount", "24GB"]),
        (["train", "--selection", "s", "--out", "OUT", "--on-oom", "half"], ["train.on_oom", "'halve'", "not 'half'"]),
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


@pytest.mark.parametrize(("setting", "words"), [("select.k=99", "k is 99"), ("evaluate.task=mgms", "'mgms'")])
def test_settings_are_refused_before_a_model_is_loaded(
    setting: str, words: str, model: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    out = tmp_path / "out"
    command = ["run", "--model", model, "--data", "corpus:", *SMALL, "--out", str(out)]
    settings = ["-s", "evaluate.task=null", "-s", setting]
    fails([*command, *settings], capsys, words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "setting", "words"),
    [
        (["train", "--selection", "WORK/selection"], "train.max_length=4", "fits into max_length=4"),
        (["train", "--selection", "WORK/selection"], "train.prompt=chat", "has no chat template"),
        (["train", "--selection", "WORK/selection"], "train.cuda_graphs=true", "one NVIDIA GPU"),
        (["train", "--selection", "WORK/selection"], "train.memory_budget=10kB", "train fewer layers"),
        (["train", "--selection", "WORK/selection"], "train.fsdp=true", "over several processes"),
        (["evaluate", "--task", "corpus", "--limit", "1"], "evaluate.max_new_tokens=500", "at most"),
        (["evaluate", "--task", "corpus", "--limit", "1"], "evaluate.prompt=chat", "has no chat template"),
        (["evaluate", "--task", "corpus", "--limit", "1", "--delta", "WORK/nope", *SHORT], "model.dtype=auto", "nope"),
        (["probe"], "probe.cuda_graphs=true", "one NVIDIA GPU"),
    ],
)
def test_what_a_model_is_not_needed_for_is_refused_before_it_is_loaded(
    command: list[str], setting: str, words: str, work: Path, model: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    data = [] if command[0] == "evaluate" else ["--data", "corpus:", "-s", "data.limit=12", "-s", "data.held_out=2"]
    arguments = [part.replace("WORK", str(work)) for part in command]
    out = tmp_path / "out"
    full = [*arguments, "--model", model, "-l", "de,zh", *data, "-s", setting, "--out", str(out)]
    fails(full, capsys, words)
    if "--delta" not in command:
        fails([*full, "--dry-run"], capsys, words)
    assert not out.exists()


def test_unusable_models(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown type, no FFN that can be fused, weights that are not finite, a selection for another model."""
    from transformers import AutoModelForCausalLM, MambaConfig

    unknown, mamba, broken, other = (tmp_path / name for name in ("unknown", "mamba", "broken", "other"))
    for folder in (unknown, mamba, broken, other):
        tiny_tokenizer().save_pretrained(folder)
    (unknown / "config.json").write_text('{"model_type": "nosuchmodel"}')
    config = MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, state_size=4)  # it has none
    AutoModelForCausalLM.from_config(config).save_pretrained(mamba)
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
    fails(probe(mamba), capsys, "FFN")
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


def test_nothing_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["score", str(tmp_path / "\x1b[31mred")], capsys, r"\x1b[31mred")


def test_an_out_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    probe = ["probe", "--model", "no/such-model", "--data", "corpus:", "--out"]
    fails([*probe, str(tmp_path / "dangling")], capsys, "is a link to nowhere, which does not exist")
    fails([*probe, os.fsdecode(os.fsencode(tmp_path) + b"/\xff")], capsys, "is not UTF-8")
