"""Evaluation end to end on a tiny model: same answers however batched, resumable, never mixed with another run."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.data.prompts import Prompt
from slamkern.data.tasks import Question
from slamkern.errors import SlamkernError
from slamkern.evaluation import accuracy
from slamkern.evaluation.accuracy import evaluate, evaluate_questions
from slamkern.evaluation.scoring import score

DATA = Path(__file__).parents[3] / "shared/data/mgsm"
QUESTIONS = [
    Question(f"toy-{code}-{i}", code, f"{text} {'how ' * (i % 3)}{i}?", str(i))
    for code, text in (("de", "Wie viele"), ("th", "ไทย"))
    for i in range(4)
]
PROMPT = Prompt("short", "{instruction}=")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model()


def run(model, tokenizer, questions=QUESTIONS, **options):
    options = {"task": "toy", "prompt": PROMPT, "max_new_tokens": 8, "progress": False, **options}
    return evaluate_questions(model, tokenizer, questions, **options)


def test_result_does_not_depend_on_batching_or_on_files(model, tokenizer, tmp_path):
    expected = run(model, tokenizer)
    assert expected.n == {"de": 4, "th": 4} and expected.prompt == "short"
    assert [p.id for p in expected.predictions] == [q.id for q in QUESTIONS]
    assert len({p.output for p in expected.predictions}) == len(QUESTIONS)
    assert all(p.truncated is (len(p.output) >= 8) for p in expected.predictions)
    for out, options in ((None, {"batch_size": 1}), (tmp_path, {"batch_size": 3})):
        again = run(model, tokenizer, out=out, **options)
        assert again == expected and again.predictions == expected.predictions
    assert score(tmp_path / "predictions.jsonl").to_dict()["accuracy"] == expected.accuracy
    assert json.loads((tmp_path / "evaluation.json").read_text())["result"] == expected.to_dict()


def test_answers_cut_at_the_longest_length_are_said(model, tokenizer, caplog):
    result = run(model, tokenizer)
    assert "8 of 8 answers were cut at 8 new tokens" in caplog.text
    caplog.clear()
    run(model, tokenizer, stop=sorted({character for p in result.predictions for character in p.output}))
    assert not caplog.text


def test_a_killed_run_resumes_with_the_unfinished_questions_only(model, tokenizer, tmp_path, monkeypatch):
    expected = run(model, tokenizer, out=tmp_path / "whole")
    lines = (tmp_path / "whole/predictions.jsonl").read_bytes().splitlines(keepends=True)
    asked = []
    generate = accuracy.generate

    def killed(*arguments, **options):
        yield from islice(generate(*arguments, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, out=tmp_path)
    path = tmp_path / "predictions.jsonl"
    with path.open("ab") as file:
        file.write(lines[3][:25])  # killed while the fourth line was being written

    def counted(model, tokenizer, prompts, **options):
        asked.extend(options["names"])
        return generate(model, tokenizer, prompts, **options)

    monkeypatch.setattr(accuracy, "generate", counted)
    resumed = run(model, tokenizer, out=tmp_path)
    assert resumed == expected and resumed.predictions == expected.predictions
    assert len(asked) == len(QUESTIONS) - 3
    assert sorted(path.read_bytes().splitlines()) == sorted(line.rstrip(b"\n") for line in lines)
    asked.clear()
    assert run(model, tokenizer, out=tmp_path) == expected and asked == []


def test_an_interrupted_batch_keeps_what_was_finished(model, tokenizer, tmp_path, monkeypatch):
    generate = accuracy.generate

    def interrupted(*arguments, **options):
        yield next(iter(generate(*arguments, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, out=tmp_path)
    assert sum(score(tmp_path / "predictions.jsonl").n.values()) == 1


def test_predictions_of_another_run_are_refused(model, tokenizer, tmp_path):
    run(model, tokenizer, out=tmp_path)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    others = {
        "prompt": {"prompt": Prompt("other", "{instruction}!")},
        "prompt_example": {"prompt": Prompt("short", "{instruction}!")},
        "task": {"task": "mgsm"},
        "max_new_tokens": {"max_new_tokens": 9},
        "stop": {"stop": ["\n"]},
    }
    for name, options in others.items():
        with pytest.raises(SlamkernError, match=rf"holds another run: {name} was .*choose another folder"):
            run(model, tokenizer, out=tmp_path, **options)
    other_data = [Question(q.id, q.language, q.question, "77") for q in QUESTIONS]
    with pytest.raises(SlamkernError, match="of other data"):
        run(model, tokenizer, other_data, out=tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-4
    with pytest.raises(SlamkernError, match="weights"):
        run(model, tokenizer, out=tmp_path)
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_bad_questions_leave_no_files(model, tokenizer, tmp_path):
    out = tmp_path / "out"
    too_long = [*QUESTIONS, Question("toy-de-long", "de", "x" * 600, "1")]
    for questions, complaint in (([], "no questions"), (QUESTIONS * 2, "repeated ids"), (too_long, "toy-de-long")):
        with pytest.raises(SlamkernError, match=complaint):
            run(model, tokenizer, questions, out=out)
    assert not out.exists()


@pytest.mark.skipif(not DATA.exists(), reason="needs the MGSM files")
def test_a_task_is_evaluated_by_name(tokenizer, tmp_path):
    model = tiny_model()
    model.config.max_position_embeddings = 4096
    result = evaluate(
        model, tokenizer, "mgsm", ["de", "bn"], data=DATA, limit=2, max_new_tokens=4, out=tmp_path, progress=False
    )
    assert result.n == {"de": 2, "bn": 2} and (result.task, result.prompt) == ("mgsm", "metamath")
    data = json.loads((tmp_path / "evaluation.json").read_text())["data"]
    assert [row["rows"] for row in data.values()] == [250, 250] and len(data["bn"]["sha256"]) == 64
    assert score(tmp_path / "predictions.jsonl").average == result.average
