"""slamkern verify: a whole run and its parts pass; whatever is wrong in any file is named, hashes right or not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.changed_bytes import change_each_byte
from support.tiny_causal_lm import tiny_model, tiny_tokenizer
from support.tiny_run import tiny_run

from slamkern.cli.main import main
from slamkern.errors import SlamkernError
from slamkern.files import load_tensors, read_checked, save_tensors, sealed, write_checked
from slamkern.pipeline import run
from slamkern.pipeline.agreement import check_pipeline
from slamkern.pipeline.stages import alignment_pairs, probe_model
from slamkern.pipeline.verify import verify

EVALUATION, STATE = "evaluation/after/evaluation.json", "train/checkpoint-3/training-state.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    run.run(tiny_run(folder), folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_passes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, problems = verify(finished)
    names = {str(path.relative_to(finished)) for path in good}
    assert not problems
    parts = ("delta.safetensors", "selection.json", "training-state.safetensors")
    assert names == {
        "stats.safetensors", "selection.json", "run.json", "metrics.json", "evaluation/before.json",
        "evaluation/after.json", EVALUATION, "evaluation/after/predictions.jsonl", "evaluation/before/evaluation.json",
        "evaluation/before/predictions.jsonl", "train/run.json", "train/metrics.jsonl", "train/delta.safetensors",
        "train/selection.json", *(f"train/checkpoint-{step}/{part}" for step in (2, 3) for part in parts),
    }  # fmt: skip
    assert main(["verify", str(finished)]) == 0
    assert f"{len(good)} files are what was written, 0 are not" in capsys.readouterr().out


def test_a_changed_byte_is_found_in_every_file(copy: Path) -> None:
    change_each_byte(verify(copy)[0], lambda: verify(copy)[1])
    assert main(["verify", str(copy)]) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stats.safetensors", "run.json: says that stats.safetensors was written, but it is gone"),
        ("selection.json", "selection.json was written, but it is gone"),
        ("evaluation/before.json", "evaluation/before.json was written, but it is gone"),
        ("metrics.json", "metrics.json was written, but it is gone"),
        ("train/delta.safetensors", "train/delta.safetensors was written, but it is gone"),
        ("run.json", "no file"), ("train/run.json", "no file"), ("train/metrics.jsonl", "no file"), (STATE, "STATE"),
        (EVALUATION, "no file"), ("evaluation/after/predictions.jsonl", "no file"),
        ("train/checkpoint-3/delta.safetensors", "does not exist"),
        ("train/selection.json", "run.json: says that train/selection.json was written, but it is gone"),
        ("train/checkpoint-2/selection.json", "checkpoint-2/selection.json"),
        ("evaluation/before", "before.json has scores, but"), ("evaluation/after", "after.json has scores, but"),
        ("train/checkpoint-2", "checkpoint-2/training-state.safetensors does not exist"),
        ("train/checkpoint-3", "checkpoint-3/training-state.safetensors does not exist"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named(copy: Path, name: str, words: str) -> None:
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    problems = verify(copy)[1]
    assert any(words.replace("STATE", "training-state.safetensors does not exist") in text for text in problems)


def json_values(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Other values in a JSON file, under a hash that is right."""

    def plant(folder: Path) -> None:
        values = read_checked(folder / name)
        change(values)
        write_checked(folder / name, values)

    return plant


def tensors_of(name: str, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        tensors, metadata = load_tensors(folder / name, "x")
        change(tensors, metadata)
        save_tensors(folder / name, tensors, metadata)

    return plant


def log_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / "train/metrics.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return plant


def another_loss(lines: list[str]) -> list[str]:
    row = json.loads(lines[1])
    row.pop("sha256")
    return [lines[0], json.dumps(sealed(row | {"loss": 1.0})) + "\n", lines[2]]


def statistics_of_another_model(folder: Path) -> None:
    config = check_pipeline(folder)
    stats = probe_model(config, tiny_model(seed=1), tiny_tokenizer(), alignment_pairs(config)[0], progress=False)
    replace(stats, model=config.model.name).save(folder / "stats.safetensors")


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (log_lines(lambda lines: lines[:2]), "metrics.jsonl: holds 2 steps of a finished run of 3"),
        (log_lines(lambda lines: [lines[0], lines[2]]), "metrics.jsonl:2: step 3 where step 2 should be"),
        (log_lines(another_loss), "metrics.json: losses is not what train/metrics.jsonl says"),
        (json_values("metrics.json", lambda v: v["config"]["data"].update(seed=9)), "config is not what run.json says"),
        (json_values("metrics.json", lambda v: v.update(steps=4)), "3 losses of 4 steps"),
        (json_values("run.json", lambda v: v.update(base_weights="0" * 64)), "base_weights is not what run.json says"),
        (json_values("metrics.json", lambda v: v.pop("base_weights")), "base_weights is not what run.json says"),
        (json_values("run.json", lambda v: v["settings"]["probe"].update(questions=0)), "run.json: "),
        (json_values("evaluation/before.json", lambda v: v.update(english_loss=9.0)), "before is not what evaluation"),
        (json_values("evaluation/after.json", lambda v: v.update(english_loss=-1.0)), "after.json is no measurement"),
        (json_values(EVALUATION, lambda v: v["result"]["accuracy"].update(en=37.0)), "gives another accuracy than"),
        (json_values(EVALUATION, lambda v: v["result"]["n"].update(en=5)), "but the result is of {'en': 5}"),
        (json_values("train/run.json", lambda v: v.update(steps=4)), "holds 3 steps of a finished run of 4"),
        (json_values("train/run.json", lambda v: v["settings"].update(frozen_weights="0" * 64)), "on other weights"),
        (json_values("train/selection.json", lambda v: v.update(layers=[1], k=1)), "selects layer 1, which"),
        (tensors_of("train/delta.safetensors", lambda t, _: t[UP].fill_(float("nan"))), f"{UP} holds values that are"),
        (tensors_of("train/delta.safetensors", lambda t, _: t.pop(UP)), f"than the run trains (first: {UP})"),
        (tensors_of("train/delta.safetensors", lambda _, m: m.pop("signature")), "signature: Field required"),
        (tensors_of(STATE, lambda t, _: t[f"optimizer/exp_avg/{UP}"].fill_(float("inf"))), "not finite"),
        (tensors_of(STATE, lambda t, _: t.pop(f"optimizer/exp_avg/{UP}")), f"than the run trains (first: {UP})"),
        (tensors_of(STATE, lambda _, m: m.update(step=2)), "training-state.safetensors: is of step 2"),
        (tensors_of(STATE, lambda _, m: m.update(fingerprint="0" * 16)), "belongs to another run"),
        (tensors_of("stats.safetensors", lambda t, _: t["active"].fill_(-1)), "not within 0 and its"),
        (statistics_of_another_model, "selection.json: scores is not what stats.safetensors gives"),
    ],
)
def test_wrong_values_under_right_hashes_are_named(copy: Path, plant: Callable[[Path], None], words: str) -> None:
    plant(copy)
    problems = verify(copy)[1]
    assert any(words in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_parts_by_themselves(copy: Path, tmp_path: Path) -> None:
    parts = {"probe": ["stats.safetensors"], "select": ["selection.json"],
             "delta": ["train/delta.safetensors", "train/selection.json"]}  # fmt: skip
    for name, files in parts.items():
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(copy / file, tmp_path / name)
        good, problems = verify(tmp_path / name)
        assert (len(good), problems) == (len(files), [])
    for name, number in (("train", 10), ("evaluation/before", 2), ("train/checkpoint-3", 3)):
        good, problems = verify(copy / name)
        assert (len(good), problems) == (number, [])
    (tmp_path / "other").mkdir()
    with pytest.raises(SlamkernError, match="no file that slamkern writes"):
        verify(tmp_path / "other")


def test_what_a_killed_run_leaves_is_no_problem_but_a_lost_step_is(copy: Path) -> None:
    train, predictions = copy / "train", copy / "evaluation/after/predictions.jsonl"
    (train / "delta.safetensors").unlink()
    shutil.rmtree(train / "checkpoint-3")
    (train / "metrics.jsonl").write_bytes((train / "metrics.jsonl").read_bytes()[:-20])
    assert verify(train)[1] == []
    record = read_checked(copy / EVALUATION)
    write_checked(copy / EVALUATION, {k: v for k, v in record.items() if k not in ("result", "predictions_sha256")})
    predictions.write_bytes(predictions.read_bytes() + b'{"id": "torn')
    assert verify(predictions.parent)[1] == []
    (train / "metrics.jsonl").write_text((train / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    assert verify(train)[1] == [f"{train / 'metrics.jsonl'}: holds 1 steps; 2 are saved of a run of 3"]
