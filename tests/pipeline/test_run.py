"""A whole run on a tiny model: every contract file, resumption without doing anything twice, other runs refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_causal_lm import ending_model, save_folder, tiny_model

from slamkern.data.tasks import load_task
from slamkern.digests import state_digest
from slamkern.errors import SlamkernError
from slamkern.evaluation import accuracy
from slamkern.pipeline import run, stages
from slamkern.pipeline.config import RunConfig, build_config
from slamkern.pipeline.plan import plan_run
from slamkern.run_folder import read_record
from slamkern.training import loop

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"path": "corpus:", "languages": ["de", "zh"], "limit": 16, "held_out": 2},
    "probe": {"questions": 6, "groups": 3},
    "select": {"k": 1, "bootstrap": 10},
    "train": {"max_steps": 3, "learning_rate": 0.01, "prompt": "authors", "tokens_per_batch": 1024},
    "evaluate": {"task": "corpus", "limit": 1, "languages": ["en", "de"], "prompt": "authors", "max_new_tokens": 4,
                 "chrf_limit": 1, "english": "corpus:"},
}  # fmt: skip


def configuration(model: Path, **changes: dict[str, Any]) -> RunConfig:
    sections = {name: SECTIONS.get(name, {}) | changes.get(name, {}) for name in (*SECTIONS, "align")}
    return build_config({"model": {"name": str(model), "dtype": "float32", "device": "cpu"}, **sections})


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run.run(configuration(model_folder), out, progress=False)
    return out


def test_contract_files(finished: Path) -> None:
    with safe_open(finished / "stats.safetensors", "pt") as stats:
        count, active = stats.get_tensor("count"), stats.get_tensor("active")
    assert count.shape == (3,) and active.shape == (3, 2, 64)
    selection = json.loads((finished / "selection.json").read_text())
    assert selection["layers"] == [0] and len(selection["scores"]) == 2 and len(selection["stability"]) == 2
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["steps"] == len(metrics["losses"]) == 3
    assert metrics["trained_parameters"] == 2 * 32 * 64
    assert metrics["tokens"] > 0 < metrics["tokens_per_second"] and metrics["peak_memory_bytes"] > 0
    for moment in ("before", "after"):
        assert set(metrics[moment]["translation"]) == {"de", "zh"}
        assert set(metrics[moment]["translation"]["de"]) == {"loss", "chrf"}
        assert set(metrics[moment]["evaluation"]["accuracy"]) == {"en", "de"}
        assert len((finished / "evaluation" / moment / "predictions.jsonl").read_text().splitlines()) == 2
    assert metrics["before"]["english_loss"] != metrics["after"]["english_loss"]
    assert len((finished / "train/metrics.jsonl").read_text().splitlines()) == 3
    assert (finished / "report.html").is_file() and (finished / "figures/loss.png").is_file()


def test_alignment_lowers_the_held_out_loss(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    for code, before in metrics["before"]["translation"].items():
        assert metrics["after"]["translation"][code]["loss"] < before["loss"]


def test_held_out_questions_are_not_trained_on(model_folder: Path) -> None:
    aligned, held_out = stages.alignment_pairs(configuration(model_folder))
    assert len(held_out) == 4
    assert not {pair.target for pair in aligned} & {pair.target for pair in held_out}
    texts = stages.probe_texts(configuration(model_folder), aligned)
    assert list(texts) == ["en", "de", "zh"] and {len(questions) for questions in texts.values()} == {6}


def test_finished_run_is_not_done_again(finished: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "load_model", lambda *_: pytest.fail("a finished run needs no model"))
    metrics = run.run(configuration(model_folder), finished, progress=False)
    saved = json.loads((finished / "metrics.json").read_text())
    assert saved.pop("sha256") and metrics == saved


def test_interrupted_run_ends_where_the_unbroken_one_ends(
    finished: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of each expensive stage; what was finished before is not made again."""
    out = tmp_path / "run"
    config = configuration(model_folder)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for module, name in ((accuracy, "evaluate_questions"), (loop, "train")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                run.run(config, out, progress=False)
    stats_written = (out / "stats.safetensors").stat().st_mtime_ns
    run.run(config, out, progress=False)
    assert (out / "stats.safetensors").stat().st_mtime_ns == stats_written
    for file in ("train/delta.safetensors", "stats.safetensors"):
        with safe_open(out / file, "pt") as ours, safe_open(finished / file, "pt") as theirs:
            assert set(ours.keys()) == set(theirs.keys())
            assert all(torch.equal(ours.get_tensor(key), theirs.get_tensor(key)) for key in ours.keys())  # noqa: SIM118


def test_a_model_changed_between_probe_and_training_is_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "model"
    shutil.copytree(model_folder, changed)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.run(configuration(changed), tmp_path / "run", progress=False)
    record = tmp_path / "run/run.json"
    before = record.read_bytes()
    assert read_record(record, "pipeline")[1]["base_weights"] == state_digest(tiny_model().state_dict())
    weights = load_file(changed / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].flip(0)}, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SlamkernError, match=r"was begun with other weights of .*choose another folder or restore"):
        run.run(configuration(changed), tmp_path / "run", progress=False)
    assert record.read_bytes() == before


def test_other_folders_are_refused(finished: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SlamkernError, match=r"holds another run: select\.k was 1, now 2"):
        run.run(configuration(model_folder, select={"k": 2}), finished, progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SlamkernError, match=r"holds notes\.txt, but no run\.json"):
        run.run(configuration(model_folder), tmp_path, progress=False)
    with pytest.raises(SlamkernError, match="is a file"):
        run.run(configuration(model_folder), tmp_path / "notes.txt", progress=False)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("select", {"k": 99}, r"k is 99; the region has 1 of 2 layers"),
        ("select", {"rule": "list:7"}, r"layers out of range: 7"),
        ("select", {"rule": "threshold:many"}, r"needs a number"),
        ("select", {"region": "middle"}, r"unknown region 'middle'"),
        ("select", {"preset": "slam-13b"}, r"layers out of range: 2, 3, 4, 5"),
        ("probe", {"languages": ["de", "zh"], "task": "corpus", "questions": 1}, None),
        ("train", {"prompt": "alpacca"}, r"did you mean 'alpaca'"),
        ("evaluate", {"prompt": "absent.txt"}, r"neither a preset, an existing file"),
        ("evaluate", {"task": "mgsm", "data": "absent"}, r"no mgsm questions|absent"),
        ("evaluate", {"questions": [5, 5], "limit": None}, r"questions: \[5, 5\] are no questions"),
        ("evaluate", {"questions": [0, 5]}, r"limit 1 and questions \[0, 5\] both choose"),
        ("evaluate", {"english": "absent.txt"}, r"no file absent.txt"),
        ("evaluate", {"prompt": "chat"}, r"has no chat template; use another prompt"),
        ("evaluate", {"max_new_tokens": 490}, r"max_new_tokens is 490, but the model's context is 512: at most \d+"),
        ("evaluate", {"max_new_tokens": 400, "task": None}, r"^prompt de: .* max_new_tokens is 400"),  # for chrF
        ("align", {"target": "reply", "max_new_tokens": 500}, r"max_new_tokens is 500, but the model's context"),
        ("train", {"prompt": "chat"}, r"has no chat template; use another prompt"),
        ("train", {"max_length": 4}, r"none of the \d+ pairs fits into max_length=4 tokens"),
        ("train", {"report_to": "tensorboard"}, r"pip install 'slamkern\[tensorboard\]'"),
        ("train", {"cuda_graphs": True}, r"for a model on one NVIDIA GPU; this one is on cpu"),
        ("train", {"optimizer_offload": True}, r"for a model on a GPU; this one is in host memory"),
        ("train", {"memory_budget": "10kB"}, r"weights and the state of what is trained alone are .* GB; train fewer"),
        ("train", {"fsdp": True}, r"with slamkern train alone, on a selection of slamkern select --model"),
        ("probe", {"cuda_graphs": True}, r"for a model on one NVIDIA GPU; this one is on cpu"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, values: dict[str, Any],
    message: str | None,
) -> None:  # fmt: skip
    class Loaded(Exception):
        pass

    monkeypatch.setitem(sys.modules, "tensorboard", None)  # not installed

    def load(**_: Any) -> None:
        raise Loaded

    monkeypatch.setattr(run, "load_model", load)
    with pytest.raises(SlamkernError if message else Loaded, match=message):
        run.run(configuration(model_folder, **{section: values}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    if message:
        with pytest.raises(SlamkernError, match=message):
            plan_run(configuration(model_folder, **{section: values}))


def test_bad_data_leaves_no_folder(model_folder: Path, tmp_path: Path) -> None:
    for data in ({"path": str(tmp_path / "absent")}, {"path": ""}, {"languages": ["de", "xx"]}):
        with pytest.raises(SlamkernError):
            run.run(configuration(model_folder, data=data), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_on_its_own_replies_makes_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions replied to, finished replies trained on with replays, their held-out loss measured on both sides."""
    save_folder(tmp_path / "model", ending_model())
    config = configuration(
        tmp_path / "model", align={"target": "reply", "examples": 6, "replay": 0.5, "questions": 10,
                                   "max_new_tokens": 40},
        evaluate={"questions": [1, 2], "limit": None, "chrf_limit": 0}, data={"held_out": 4},
    )  # fmt: skip
    metrics = run.run(config, tmp_path / "run", progress=False)
    rows = json.loads((tmp_path / "run/replies.json").read_text())["replies"]
    assert len(rows) == 10 + 4
    ended = sum(row["ended"] and bool(row["reply"]) for row in rows)
    assert 0 < ended < len(rows) and metrics["unfinished_replies"] == len(rows) - ended
    assert metrics["examples"] == {"de": 3, "zh": 3, "en": 3}
    before, after = (metrics[moment]["reply_loss"] for moment in ("before", "after"))
    assert set(before) == set(after) == {"en", "de", "zh"} and after["de"] < before["de"]
    asked = json.loads((tmp_path / "run/evaluation/before/predictions.jsonl").read_text().splitlines()[0])
    assert asked["id"] == load_task("corpus", ["en"], limit=2)[1].id
    assert "3 de, 3 zh, 3 en" in (tmp_path / "run/report.html").read_text()
    # A run that was stopped after its replies does not ask again.
    (tmp_path / "run/report.html").unlink()
    monkeypatch.setattr("slamkern.evaluation.replies.generate", lambda *_, **__: pytest.fail("asked again"))
    assert run.run(config, tmp_path / "run", progress=False)["losses"] == metrics["losses"]
