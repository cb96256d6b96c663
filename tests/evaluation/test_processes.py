"""Several processes answer as one does: the same file in the same order, whatever became of the run before."""

import os
import signal

import torch
from support.processes import launch
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern import distributed
from slamkern.data.tasks import Question
from slamkern.errors import SlamkernError
from slamkern.evaluation.accuracy import evaluate_questions
from slamkern.evaluation.predictions import PredictionLog

QUESTIONS = [
    Question(f"{code}-{n}", code, f"{n} apples" * n, str(n)) for code in ("en", "de", "sw") for n in range(1, 5)
]


def answer(out, questions=QUESTIONS, model=None, **options):
    return evaluate_questions(
        model or tiny_model(), tiny_tokenizer(), questions, task="mgsm", prompt="authors", max_new_tokens=6,
        batch_size=2, out=out, progress=False, **options,
    )  # fmt: skip


def content(out):
    return (out / "predictions.jsonl").read_bytes()


def test_processes_answer_what_one_answers_and_the_file_is_the_same(tmp_path):
    expected = answer(tmp_path / "one")
    lines = content(tmp_path / "one").decode().splitlines()
    assert [line.split('"')[3] for line in lines] == [question.id for question in QUESTIONS]
    for processes in (2, 3):
        out = tmp_path / str(processes)
        assert launch(processes, lambda _, out=out: answer(out)) == [expected] * processes
        assert content(out) == content(tmp_path / "one")
        assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "predictions.jsonl"]
    assert launch(2, lambda _: answer(None)) == [expected] * 2
    # Fewer questions than processes.
    few = answer(None, QUESTIONS[:1])
    assert launch(2, lambda _: answer(tmp_path / "few", QUESTIONS[:1])) == [few] * 2


def test_a_model_in_ddp_answers_as_the_model_in_it():
    def wrapped(_):
        distributed.join()
        return answer(None, QUESTIONS[:3], torch.nn.parallel.DistributedDataParallel(tiny_model()))

    assert launch(2, wrapped) == [answer(None, QUESTIONS[:3])] * 2


def test_a_killed_evaluation_goes_on_with_another_number_of_processes(tmp_path, monkeypatch):
    expected = answer(tmp_path / "whole")
    add = PredictionLog.add

    def killed(log, prediction):
        add(log, prediction)
        if len(log.finished) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(_):
        monkeypatch.setattr(PredictionLog, "add", killed)
        answer(tmp_path / "cut")

    _, other = launch(2, run, dies=(0,))
    assert isinstance(other, SlamkernError) and "ended or does not answer" in str(other)
    assert content(tmp_path / "cut").count(b"\n") == 5
    assert launch(3, lambda _: answer(tmp_path / "cut")) == [expected] * 3
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_prompt_that_is_too_long_is_refused_by_all(tmp_path):
    long = [*QUESTIONS, Question("long", "en", "x" * 600, "1")]
    errors = launch(2, lambda _: answer(tmp_path / "out", long))
    assert all(isinstance(error, SlamkernError) and "long" in str(error) for error in errors)
    assert not (tmp_path / "out").exists()
