"""A dry run says what the run then does, without weights and without writing anything."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_causal_lm import save_folder

from slamkern.cli.main import main
from slamkern.data.prompts import get_prompt
from slamkern.data.tokenization import tokenize_pairs
from slamkern.errors import SlamkernError
from slamkern.pipeline.config import RunConfig, build_config
from slamkern.pipeline.launch import Launch, read_launch
from slamkern.pipeline.loading import load_model, load_tokenizer
from slamkern.pipeline.plan import Plan, plan_run
from slamkern.pipeline.run import run
from slamkern.pipeline.stages import alignment_pairs
from slamkern.selection.layers import LayerSelection
from slamkern.training.checkpoint import save_delta
from slamkern.training.footprint import gigabytes


def configuration(model: Path, **changes: dict[str, Any]) -> RunConfig:
    sections: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
        "data": {"path": "corpus:", "languages": ["de", "zh"], "limit": 16, "held_out": 2},
        "probe": {"questions": 6, "groups": 3},
        "select": {"k": 1, "bootstrap": 0},
        "train": {"max_steps": 3, "prompt": "authors", "tokens_per_batch": 1024},
        "evaluate": {"task": "corpus", "limit": 1, "languages": ["en", "de"], "prompt": "authors",
                     "max_new_tokens": 4, "chrf_limit": 0},
    }  # fmt: skip
    return build_config({name: sections.get(name, {}) | changes.get(name, {}) for name in (*sections, "align")})


@pytest.fixture
def weightless(model_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model_folder, tmp_path / "weightless"))
    (folder / "model.safetensors").unlink()
    return folder


def test_the_plan_is_what_the_run_does(model_folder: Path, weightless: Path, tmp_path: Path) -> None:
    planned = {name.strip(): what for name, what in plan_run(configuration(weightless))}
    metrics = run(configuration(model_folder), tmp_path / "run", progress=False)
    assert planned["model"].startswith(f"LlamaForCausalLM, {metrics['total_parameters']:,} parameters")
    assert planned["train"].startswith(f"{metrics['trained_parameters']:,} parameters")
    assert planned["work"].startswith(f"{metrics['steps']} steps, {metrics['tokens']:,} tokens")
    batch = int(planned["memory"].partition(" at ")[2].partition(" tokens")[0].replace(",", ""))
    rows = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert batch == max(row["tokens"] for row in rows) > 800  # one micro-batch a step, of up to 1024
    assert "2 questions" in planned["evaluate, 2 times"] and "at most 8 written" in planned["evaluate, 2 times"]
    assert planned["held-out losses"].startswith("4 pairs, ") and "in 2 passes" in planned["held-out losses"]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["made"]["versions"]["torch"]


def test_other_architectures_have_no_memory_line(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=2048)
    save_folder(folder, AutoModelForCausalLM.from_config(config))
    planned = {name.strip(): what for name, what in plan_run(configuration(folder))}
    assert "not known for gpt2" in planned["work"] and "memory" not in planned


def test_halves_of_one_weight_are_planned_as_they_are_trained(tmp_path: Path) -> None:
    """gate and up of Phi-3 are one weight, of which training ``up`` takes the rows of a half."""
    from transformers import AutoModelForCausalLM, Phi3Config

    sizes = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = Phi3Config(**sizes, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    folder = save_folder(tmp_path / "phi3", AutoModelForCausalLM.from_config(config))
    planned = dict(plan_run(configuration(folder)))
    metrics = run(configuration(folder), tmp_path / "run", progress=False)
    assert planned["train"].startswith(f"{metrics['trained_parameters']:,} parameters")


def test_a_dry_run_says_how_a_memory_budget_is_kept_or_that_it_cannot_be(weightless: Path) -> None:
    def planned(budget: str) -> str:
        return dict(plan_run(configuration(weightless, train={"memory_budget": budget})))["  budget"]

    assert "recomputed in 0 of 2 layers, optimizer in the device's memory" in planned("1GB")
    with pytest.raises(SlamkernError, match=r"needs .* even with every FFN recomputed, more than the memory budget"):
        planned("10kB")


def test_a_dry_run_checks_and_writes_nothing(
    weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = ["--model", str(weightless), "--out", str(out), "--dry-run"]
    data = ["--data", "corpus:20", "-l", "de,zh", "-s", "data.held_out=2"]
    small = ["-s", "evaluate.task=null", "-s", "evaluate.chrf_limit=0", "-s", "select.k=1"]
    assert main(["run", *common, *data, *small]) == 0
    assert "nothing was written" in capsys.readouterr().out
    some = ["-s", "evaluate.chrf_limit=1", "-s", "evaluate.max_new_tokens=8"]
    assert main(["run", *common, *data, *small, *some]) == 0
    assert re.search(r"chrF, 2 times: +2 translations, \d+ tokens read, at most 16 written", capsys.readouterr().out)
    assert main(["probe", *common, *data]) == 0
    assert "GB of weights, and one layer's activations" in capsys.readouterr().out
    job = ["--dry-run-on", str(accelerate_file(tmp_path / "job.yaml"))]
    LayerSelection((0,)).save(tmp_path / "selection.json")
    selection = ["--selection", str(tmp_path)]
    assert main(["train", *common[:-1], *job, *data, *selection, "-s", "train.fsdp=true"]) == 0
    assert "in each of 16 processes, sharded with FSDP2" in capsys.readouterr().out
    assert main(["train", *common[:-1], *job, *data, *selection]) == 2
    assert "set fsdp (train.fsdp=true) too" in capsys.readouterr().err
    assert main(["run", *common[:-1], *job, *data, *small]) == 2
    assert "FSDP2" not in (said := capsys.readouterr()).out and "slamkern train alone" in said.err
    job[1] = str(accelerate_file(tmp_path / "job.yaml", distributed_type="MULTI_GPU"))
    assert main(["run", *common[:-1], *job, *data, *small]) == 0
    said = capsys.readouterr()
    assert "in each of 16 processes, all weights in each" in said.out and "FSDP2" not in said.out
    short = ["-s", "evaluate.max_new_tokens=8"]
    assert main(["evaluate", *common, "--task", "corpus", "-l", "de", "--limit", "2", *short]) == 0
    said = capsys.readouterr()
    assert "GB of weights, and keys and values" in said.out and "GB of answers, at 4 bytes a token" in said.out
    assert main(["run", *common, *data, "-s", "select.k=99"]) == 2
    with pytest.raises(SlamkernError, match="k is 99"):
        plan_run(configuration(weightless, select={"k": 99}))
    assert not out.exists()


def test_what_reads_weights_for_long_says_first_what_it_takes(
    model_folder: Path, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(str(model_folder), "float32", "cpu")[0]
    freeze_all_but(model, "model.layers.0.mlp.up_proj.weight")
    delta = str(save_delta(model, tmp_path / "trained"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = sum(
        len(example.input_ids)
        for example in tokenize_pairs(
            alignment_pairs(configuration(model_folder))[1],
            load_tokenizer(str(model_folder)), get_prompt("alpaca"), max_length=512,
        )
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    values = ("data.languages=de,zh", "data.held_out=2", "data.limit=16")
    data = ["--data", "corpus:", *(word for value in values for word in ("-s", value)), "--dry-run"]
    named = ["--model", str(weightless), "--out", str(tmp_path / "out")]

    def said(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    sweep = said("delta", "sweep", delta, "--scales", "0,1,2", *named, *data)
    assert f"4 pairs, {3 * tokens:,} tokens in 3 passes; {6.0 * tokens * parameters:.3g} FLOPs" in sweep
    exported = said("export", "--delta", delta, *named, "--dry-run")
    assert f"export:              {gigabytes(4 * parameters)} of memory and as much disk" in exported
    asked = ["--questions", "corpus", "-l", "de,zh", "--limit", "1", "-s", "evaluate.max_new_tokens=4"]
    compared = said("compare", str(weightless), str(model_folder), *asked, *data)
    assert compared.count("GB of answers, at 4 bytes a token") == 2
    assert compared.count(f"4 pairs, {tokens:,} tokens; ") == compared.count("2 questions, ") == 2
    assert f"{gigabytes(4 * parameters)} of weights, one model at a time" in compared
    assert main(["delta", "sweep", str(tmp_path), *named, *data]) == 2
    assert main(["export", "--delta", str(tmp_path), *named, "--dry-run"]) == 2
    assert main(["compare", str(weightless), "--delta", str(tmp_path), *asked, *data]) == 2
    assert main(["compare", str(weightless), str(weightless), "--dry-run"]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def freeze_all_but(model: Any, name: str) -> None:
    model.requires_grad_(False)
    model.get_parameter(name).requires_grad_(True)


def test_replies_are_planned_at_their_longest(weightless: Path) -> None:
    align = {"target": "reply", "examples": 6, "replay": 0.5, "questions": 5, "max_new_tokens": 20}
    plan = dict(plan_run(configuration(weightless, align=align)))
    assert plan["replies"].startswith("7 questions") and "at most 140 written" in plan["replies"]
    assert plan["train"] and "3 steps" in plan["  work"]


def accelerate_file(path: Path, **changes: Any) -> Path:
    """Written by accelerate itself."""
    from accelerate.commands.config.config_args import ClusterConfig

    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "mixed_precision": "bf16", "use_cpu": False,
        "debug": False, "num_processes": 16, "num_machines": 2, "fsdp_config": {"fsdp_version": 2},
    }  # fmt: skip
    ClusterConfig(**values | changes).to_yaml_file(path)
    return path


def test_a_plan_for_many_processes_says_what_each_holds_and_sends(model_folder: Path, tmp_path: Path) -> None:
    changes = {"train": {"gradient_accumulation_steps": 8, "max_steps": 3, "prompt": "authors"}}
    launch = read_launch(accelerate_file(tmp_path / "16.yaml"))
    assert launch == Launch(16, 2, fsdp=True, here=False)
    alone, many = (
        Plan(configuration(model_folder, **changes), Launch()),
        Plan(configuration(model_folder, **changes), launch),
    )
    for plan in (alone, many):
        plan.train(*alignment_pairs(plan.config)[:1], None)
    assert not alone.wire and set(alone.memory) == {"replicated"}
    whole, part = many.memory["replicated"], many.memory["sharded"]
    assert whole["weights"] == alone.memory["replicated"]["weights"] == 4 * many.parameters + 32  # frequencies
    assert (
        part["optimizer"] == -(-whole["optimizer"] // 16) and part["saved for backward"] == whole["saved for backward"]
    )
    trained = many.trained
    assert many.wire["replicated"] == 2 * 15 * 4 * trained // 16
    # One micro-batch each: all weights for the forward, at least once more a part of them, the gradients.
    least = 15 * (4 * many.parameters + 4 * trained) // 16
    assert least < many.wire["sharded"] <= least + 15 * 4 * many.parameters // 16
    assert any("sharded with FSDP2" in what and "the network" in what for _, what in many.lines)


def test_a_launch_that_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    for changes, words in [
        ({"distributed_type": "DEEPSPEED"}, "distributed_type 'DEEPSPEED' cannot be planned"),
        ({"fsdp_config": {"fsdp_version": 1}}, "fsdp_version is 1; slamkern works with 2"),
        ({"num_processes": 15}, "15 processes are not equally many on 2 machines"),
    ]:
        with pytest.raises(SlamkernError, match=words):
            read_launch(accelerate_file(tmp_path / "launch.yaml", **changes))
    (tmp_path / "other.yaml").write_text("train: {max_steps: 3}")
    with pytest.raises(SlamkernError, match="no configuration of accelerate launch"):
        read_launch(tmp_path / "other.yaml")
