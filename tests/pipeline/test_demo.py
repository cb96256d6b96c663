"""The demo: its model is really trained and reproducible, and its run measures what it prints."""

import json
from pathlib import Path

import pytest
import torch

from slamkern.data.synthetic import LANGUAGES, generate
from slamkern.errors import SlamkernError
from slamkern.pipeline.demo import demo_config, run_demo
from slamkern.pipeline.demo_model import ModelSize, build_model, train_tokenizer

SMALL = ModelSize(vocabulary=400, hidden=32, layers=4, heads=2, intermediate=64, problems=40, foreign=10, row=64)
SHORT = ["data.limit=12", "data.held_out=2", "probe.questions=4", "select.k=1", "train.max_steps=2",
         "evaluate.limit=1", "evaluate.chrf_limit=1", "evaluate.max_new_tokens=4"]  # fmt: skip


def test_tokenizer_reads_every_language_digit_by_digit() -> None:
    tokenizer = train_tokenizer(generate(20), 600)
    for code, question in generate(1, seed=3)[0].questions.items():
        assert tokenizer.decode(tokenizer(question)["input_ids"]) == question, code
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4
    assert len(tokenizer) == 600


def test_model_is_trained_and_the_same_each_time() -> None:
    torch.manual_seed(1)
    models = [build_model(SMALL, "authors", progress=False)[0] for _ in range(2)]
    first, second = (model.state_dict() for model in models)
    # Norm weights start at exactly 1.
    assert not torch.equal(first["model.norm.weight"], torch.ones(SMALL.hidden))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_questions_to_be_measured_on_are_new_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from slamkern.pipeline import demo_model

    read: list[str] = []
    rows = demo_model._rows

    def spy(problems, *rest):  # type: ignore[no-untyped-def]
        read.extend(problem.questions["en"] for problem in problems)
        return rows(problems, *rest)

    monkeypatch.setattr(demo_model, "_rows", spy)
    unseen = {problem.questions["en"] for problem in generate(40, seed=1)[:5]}
    build_model(SMALL, "authors", unseen, progress=False)
    assert len(read) == 35 and not unseen & set(read)


def test_whole_demo_and_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "demo"
    metrics = run_demo(out, overrides=SHORT, size=SMALL, progress=False)
    assert set(metrics["before"]["translation"]) == set(LANGUAGES) - {"en"}
    assert set(metrics["after"]["evaluation"]["accuracy"]) == set(LANGUAGES)
    saved = json.loads((out / "metrics.json").read_text())
    assert saved.pop("sha256") and metrics == saved
    assert (out / "report.html").is_file() and (out / "model/model.safetensors").is_file()
    caplog.clear()
    assert run_demo(out, overrides=SHORT, size=SMALL, progress=False) == metrics
    assert f"rm -r {out}" in caplog.text
    with pytest.raises(SlamkernError, match=r"select\.k was 1, now 2"):
        run_demo(out, overrides=[*SHORT, "select.k=2"], size=SMALL, progress=False)


def test_smollm2_is_the_same_pipeline() -> None:
    config = demo_config("out", "smollm2", ["train.max_steps=3"])
    assert config.model.name == "smollm2" and config.train.max_steps == 3


@pytest.mark.slow
def test_alignment_raises_translation_in_every_language(tmp_path: Path) -> None:
    """The demo as it is shipped."""
    metrics = run_demo(tmp_path / "demo", progress=False)
    for code, before in metrics["before"]["translation"].items():
        after = metrics["after"]["translation"][code]
        assert after["loss"] < before["loss"], code
        assert after["chrf"] > before["chrf"], code
