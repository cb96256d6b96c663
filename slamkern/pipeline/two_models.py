"""Two models, or one and its delta, asked the same questions: what `compare` then judges, in one resumable folder.

    compared.json    the record of the folder: configuration, models and the hashes of their weights, questions
    evaluation/      before/ and after/ with their answers, before.json and after.json with losses, as a run has them

Losses are those of English text (``evaluate.english``, else the embedded corpus) and, with ``data.path``, of its
held-out pairs. A side that is done is not loaded again where its weights are known to be those of then.
"""

import gc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slamkern.data.pairs import Pair
from slamkern.data.tasks import Question
from slamkern.digests import texts_digest
from slamkern.errors import SlamkernError
from slamkern.files import write_checked
from slamkern.pipeline.base_weights import BaseWeights, bind
from slamkern.pipeline.checks import check_evaluation
from slamkern.pipeline.loading import load_model
from slamkern.pipeline.sections import ModelSection, RunConfig
from slamkern.pipeline.stages import alignment_pairs, english_texts, measure
from slamkern.run_folder import RunFolder
from slamkern.schemas.training import DELTA

KIND, RECORD = "comparison", "compared.json"
SIDES = ("before", "after")


def evaluate_two(
    config: RunConfig,
    tuned: str | Path,
    questions: Sequence[Question],
    out: str | Path,
    *,
    task: str,
    delta: bool = False,
    progress: bool = True,
) -> tuple[Path, Path]:
    """Answers of ``config.model`` and of ``tuned`` to ``questions``; returns the two evaluation folders.

    ``tuned`` names a model or, with ``delta``, the folder of a training run, whose weights are put into the first one.
    SlamkernError for what is wrong with models, prompt, data or folder before anything is asked, and for a folder whose
    answers came from other weights.
    """
    config, after, held_out = _checked(config, tuned, questions, delta)
    settings = {
        "models": [config.model.name, str(tuned)],
        "questions": texts_digest(text for q in questions for text in (q.id, q.language, q.question, q.gold)),
        "config": config.model_dump(mode="json"),
    }
    out = Path(out)
    with RunFolder(out, KIND, record=RECORD, results=["evaluation/*"], inside=("evaluation",)) as folder:
        folder.claim(settings)
        noted = folder.notes.setdefault("weights", {})
        folder.save()
        model: Any = None
        for side, section in zip(SIDES, (config.model, after), strict=True):
            path = out / "evaluation" / f"{side}.json"
            brought = Path(tuned) / DELTA if delta and side == "after" else None
            name = str(brought or section.name)
            source = BaseWeights(section)
            if path.is_file():
                if side in noted:  # a folder of before has no hashes
                    now = _file_digest(brought) if brought else source.known() or source.digest(_load(section)[0])
                    bind(noted, side, now, out, name)
                continue
            if model is None or brought is None:
                model = tokenizer = None  # before the next one takes its memory
                gc.collect()
                model, tokenizer = _load(section)
            bind(noted, side, _file_digest(brought) if brought else source.digest(model), out, name)
            folder.save()
            if brought:
                from slamkern.training.checkpoint import load_delta

                load_delta(model, brought)
            values = measure(
                config, model, tokenizer, held_out, asked=(task, questions), out=path.with_suffix(""), progress=progress
            )
            write_checked(path, values)
    before, after_folder = (out / "evaluation" / side for side in SIDES)
    return before, after_folder


def _load(section: ModelSection) -> tuple[Any, Any]:
    return load_model(**section.arguments())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_two(
    config: RunConfig, tuned: str | Path, questions: Sequence[Question], *, delta: bool = False
) -> list[tuple[str, str]]:
    """What :func:`evaluate_two` will take, without doing it: lines, (name, what) each; refuses what that refuses."""
    from slamkern.pipeline.plan import Plan
    from slamkern.training.footprint import gigabytes

    config, after, held_out = _checked(config, tuned, questions, delta)
    sides = [config, config.model_copy(update={"model": after})]
    lines, weights = [], 0
    for name, side in zip(SIDES, sides, strict=True):
        plan = Plan(side)
        weights = max(weights, plan.parameters * plan.dtype.itemsize)
        plan.lines = [(name if entry == "model" else f"  {entry}", what) for entry, what in plan.lines]
        if held_out:
            plan.losses("  losses", held_out, side.train.prompt)
        plan.evaluate(questions)
        plan.lines[-2] = ("  answers", plan.lines[-2][1])
        lines += plan.lines
    return [*lines, ("memory", f"{gigabytes(weights)} of weights, one model at a time, and what answers need")]


def _checked(
    config: RunConfig, tuned: str | Path, questions: Sequence[Question], delta: bool
) -> tuple[RunConfig, ModelSection, list[Pair]]:
    """(configuration of the measurements, model section of the second side, held-out pairs)."""
    held_out = alignment_pairs(config)[1] if config.data.path else []
    # Of what a run measures, chrF is left out: it is not compared.
    measured = {"english": _english(config, held_out), "chrf_limit": 0}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=measured)})
    english_texts(config, held_out)
    after = config.model if delta else config.model.model_copy(update={"name": str(tuned)})
    for section in {config.model, after}:
        check_evaluation(config.model_copy(update={"model": section}), questions)
    if delta and not (Path(tuned) / DELTA).is_file():
        raise SlamkernError(f"{tuned} holds no {DELTA}; give the folder of a training run")
    return config, after, held_out


def _english(config: RunConfig, held_out: Sequence[Pair]) -> str | None:
    return config.evaluate.english or (None if held_out else "corpus:")
