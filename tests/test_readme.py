"""The Python of README.md runs as printed; a tiny model and a few questions take the place of what it names.

Its command lines are parsed, those of accelerate and torchrun by their own parsers.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM

import slamkern
from slamkern.cli.commands import app

README = Path(__file__).resolve().parents[1] / "README.md"
QUESTIONS = {"en": "Anna has {} apples.", "de": "Anna hat {} Apfel.", "sw": "Anna ana tofaa {}."}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_tokenizer):
    """An empty working directory with the model ``tiny`` and the folder ``questions``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny_model(max_position_embeddings=1024).save_pretrained("tiny")
    tiny_tokenizer.save_pretrained("tiny")
    for code in ("de", "sw"):
        folder = tmp_path / "questions" / f"{code}-en"
        folder.mkdir(parents=True)
        for each in (code, "en"):
            lines = [QUESTIONS[each].format(number) for number in range(8)]
            (folder / f"train.{each}").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_python_of_the_readme_runs(place):
    pytest.importorskip("trl")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    smaller = {
        "Qwen/Qwen2.5-Coder-0.5B-Instruct": "tiny",
        ', device_map="cuda"': "",
        "k=6": "k=2",
        "packing=True": "packing=True, use_cpu=True",
    }
    names: dict[str, object] = {}
    for block in blocks:
        for printed, tiny in smaller.items():
            block = block.replace(printed, tiny)
        exec(compile(block, str(README), "exec"), names)
    trained = {f"model.layers.{i}.mlp.{name}_proj.weight" for i in names["selection"].layers for name in ("up", "down")}
    for folder, dtype in (("aligned", "bfloat16"), ("aligned-trl/slamkern", "float32")):
        fresh = AutoModelForCausalLM.from_pretrained("tiny", dtype=dtype)
        before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
        assert set(slamkern.load_delta(fresh, folder)) == trained
        assert any(not tensor.equal(before[name]) for name, tensor in fresh.state_dict().items()), folder
    exported = slamkern.export_model(names["model"], names["tokenizer"], "model-aligned")
    assert AutoModelForCausalLM.from_pretrained(exported).dtype == names["model"].dtype


def commands_of_the_readme():
    blocks = re.findall(r"^```console\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


def parse(arguments):
    """Command and options exist, and each argument has a place; nothing runs."""
    if "..." in arguments or "--help" in arguments:
        arguments = [part for part in arguments if part not in ("...", "--help")]
        assert typer.main.get_command(app).commands[arguments[0]]
        return
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        context = type(command).context_class(command, parent=context)
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, list(arguments))


def options_of_all_commands(command, name=""):
    """Command -> its options."""
    if not hasattr(command, "commands"):
        return {name: {option for parameter in command.params for option in parameter.opts}}
    found = {}
    for word, inner in command.commands.items():
        found |= options_of_all_commands(inner, f"{name} {word}".strip())
    return found


def test_the_readme_names_exactly_the_commands_that_have_an_option():
    text = " ".join(README.read_text(encoding="utf-8").split())
    has = options_of_all_commands(typer.main.get_command(app))

    def named(start, end):
        return set(re.findall("`([a-z ]+)`", text.partition(start)[2].partition(end)[0]))

    def having(option):
        return {name for name, options in has.items() if option in options}

    configured = named("`--set section.key=value`: ", "; `demo` has `--set`")
    assert configured == having("--config") and configured | {"demo"} == having("--set")
    assert named("what they will take: ", "(with `--dry-run-on") == having("--dry-run-on")
    assert named("what they will take: ", "Pairs and tokens") == having("--dry-run")


def test_the_commands_of_the_readme_parse(place):
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    for name in ("before", "after", "trained", "selection", "aligned", "probe", "msvamp"):
        (place / name).mkdir()
    (place / "mine.jsonl").touch()
    shutil.copytree(README.parent / "benchmarks" / "configs", place / "benchmarks" / "configs")
    found = commands_of_the_readme()
    assert {line[0] for line in found} == {"slamkern", "accelerate", "torchrun"}
    for name, *arguments in found:
        if name == "accelerate":
            started = launch_command_parser().parse_args(arguments[1:])
            assert started.num_processes == 8 and started.multi_gpu and started.module
            assert started.training_script == "slamkern"
            arguments = started.training_script_args
        elif name == "torchrun":
            started = get_args_parser().parse_args(arguments)
            assert started.nproc_per_node == "8" and started.module and started.training_script == "slamkern"
            arguments = started.training_script_args
        parse(arguments)
    with pytest.raises(Exception, match="No such option"):
        parse(["probe", "--no-such-option"])
