"""Zero-shot accuracy of a model on reasoning questions in many languages: load, prompt, generate, score.

`evaluate` names a task; `evaluate_questions` takes the questions. With an output folder every answer is on disk as
soon as its batch is done, and the same call goes on where a killed one stopped. What the numbers mean (rules,
intervals) stands in `scoring`, how texts are generated in `generation`, the files in `predictions`.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slamkern import distributed
from slamkern.data.prompts import Prompt, get_prompt
from slamkern.data.tasks import Question, load_task
from slamkern.digests import state_digest
from slamkern.errors import SlamkernError
from slamkern.evaluation.generation import generate
from slamkern.evaluation.predictions import PredictionLog
from slamkern.evaluation.scoring import EvaluationResult, judge, summarize
from slamkern.progress import progress_bar
from slamkern.schemas.predictions import Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task: str,
    languages: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    prompt: str | Prompt = "metamath",
    limit: int | None = None,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    batch_tokens: int = 16384,
    stop: Sequence[str] = (),
    out: str | Path | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Answer the questions of a task and score the answers.

    ``languages`` (default: all of the task), ``data`` (default: the task's hub id) and ``limit`` (questions per
    language) choose the questions; the rest is passed on to `evaluate_questions`.
    """
    questions = load_task(task, languages, data, limit)
    return evaluate_questions(
        model, tokenizer, questions, task=task, prompt=prompt, max_new_tokens=max_new_tokens, batch_size=batch_size,
        batch_tokens=batch_tokens, stop=stop, out=out, progress=progress,
    )  # fmt: skip


def evaluate_questions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    *,
    task: str,
    prompt: str | Prompt = "metamath",
    max_new_tokens: int = 512,
    batch_size: int = 16,
    batch_tokens: int = 16384,
    stop: Sequence[str] = (),
    out: str | Path | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Answer ``questions`` greedily and score the answers; ``result.predictions`` keeps the order of the questions.

    A batch has at most ``batch_size`` rows and ``batch_tokens`` cache positions; an answer ends at an end-of-sequence
    token, at one of the ``stop`` strings, or after ``max_new_tokens``. With ``out``, predictions are appended to
    ``out/predictions.jsonl`` and questions found there are not asked again. The model is evaluated in evaluation mode
    and left in the mode it was in. Every process of a job answers a share of the questions, and all return the result.

    Raises SlamkernError for no questions, repeated ids, a prompt that does not fit the model's context, and an
    ``out`` that belongs to another model (weights included), task, prompt, length or set of questions.
    """
    model = distributed.unwrapped(model)
    by_id = {question.id: question for question in questions}
    if not questions or len(by_id) != len(questions):
        problem = "no questions" if not questions else "questions with repeated ids"
        raise SlamkernError(f"{problem} to evaluate on task {task!r}")
    prompt = get_prompt(prompt, tokenizer) if isinstance(prompt, str) else prompt
    name = model.name_or_path or type(model).__name__
    settings = _settings(model, task, prompt, max_new_tokens, stop)
    # A model is its weights; the same ones may lie elsewhere by now.
    data = {question.language: asdict(question.revision) for question in questions if question.revision is not None}
    distributed.require_equal(settings)
    with PredictionLog(out, settings, {"model": name, "data": data}) as log:
        for entry in log.finished.values():
            asked = by_id.get(entry.id)
            if asked is not None and (asked.question, asked.gold) != (entry.question, entry.gold):
                raise SlamkernError(f"{out} answers question {entry.id!r} of other data; choose another folder")
        open_questions = [question for question in questions if question.id not in log.finished]
        answers = generate(
            model, tokenizer, [prompt.question(q.question, q.language) for q in open_questions],
            max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, batch_size=batch_size, stop=stop,
            names=[q.id for q in open_questions],
        )  # fmt: skip
        done = len(questions) - len(open_questions)
        with progress_bar(
            total=len(questions), initial=done, desc=f"evaluate {task}", unit="question", show=progress
        ) as bar:
            for index, output, ended in answers:
                question = open_questions[index]
                prediction, correct = judge(output, question.gold)
                log.add(
                    Prediction(
                        question.id,
                        question.language,
                        question.question,
                        question.gold,
                        output,
                        prediction,
                        correct,
                        truncated=not ended,
                    )
                )
                bar.update()
        log.finished = distributed.on_main(lambda: log.finished)
        result = summarize(
            [log.finished[question.id] for question in questions], task=task, model=name,
            prompt=prompt.name, max_new_tokens=max_new_tokens,
        )  # fmt: skip
        distributed.on_main(lambda: log.finish(by_id, result.to_dict()))
    cut = sum(bool(answer.truncated) for answer in result.predictions)
    if cut > len(questions) / 10:
        _log.warning(
            "%d of %d answers were cut at %d new tokens and judged as they stand; raise max_new_tokens",
            cut, len(questions), max_new_tokens,
        )  # fmt: skip
    return result


def _settings(
    model: "PreTrainedModel", task: str, prompt: Prompt, max_new_tokens: int, stop: Sequence[str]
) -> dict[str, Any]:
    """What the outputs depend on besides the questions: the fingerprint that a resumed run has to match."""
    return {
        "task": task,
        "weights": state_digest(model.state_dict()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt": prompt.name,
        "prompt_example": prompt.question("<question>", "de"),
        "max_new_tokens": max_new_tokens,
        "stop": list(stop),
    }
