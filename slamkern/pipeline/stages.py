"""What each stage of a run does with its section of the configuration; their order and their folder are in ``run``."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slamkern.data.alignment import aligned_examples, english_questions
from slamkern.data.pairs import Pair, load_pairs, split_pairs
from slamkern.data.prompts import get_prompt
from slamkern.data.tasks import Question
from slamkern.digests import texts_digest
from slamkern.errors import SlamkernError
from slamkern.pipeline.sections import RunConfig
from slamkern.probe.stats import ActivationStats
from slamkern.selection.layers import LayerSelection, select_layers

log = logging.getLogger(__name__)


def alignment_pairs(config: RunConfig) -> tuple[Sequence[Pair], list[Pair]]:
    """(pairs to train on, held-out pairs) of the data section."""
    data = config.data
    if data.content == "answer" and config.align.target != ("translation",):
        raise SlamkernError("data.content answer has no questions to reply to; use question or both")
    if not data.path:
        raise SlamkernError("no data given: say data.path (or --data), a folder, a JSON file, corpus: or hf:owner/name")
    pairs = load_pairs(data.path, data.languages, content=data.content, limit=data.limit)
    return split_pairs(pairs, data.held_out, data.seed)


def reply_questions(config: RunConfig, aligned: Sequence[Pair], held_out: Sequence[Pair]) -> list[str]:
    """The English questions that the model replies to itself: those to train on, then the held-out ones."""
    if not config.align.needs_replies:
        return []
    return english_questions(aligned, config.align.questions) + english_questions(held_out)


def model_replies(
    config: RunConfig, model: Any, tokenizer: Any, questions: Sequence[str], path: Path, *, progress: bool
) -> dict[str, str]:
    """English question -> the model's own reply, made once in the file ``path``; none where none is needed."""
    from slamkern.evaluation.replies import own_replies

    section = config.align
    if not questions:
        return {}
    return own_replies(
        model, tokenizer, questions, get_prompt(config.train.prompt, tokenizer), path,
        max_new_tokens=section.max_new_tokens, batch_size=section.batch_size, progress=progress,
    )  # fmt: skip


def training_examples(config: RunConfig, aligned: Sequence[Pair], replies: Mapping[str, str]) -> Sequence[Pair]:
    """What the align section makes of the pairs to train on and of the replies to their English sides."""
    section = config.align
    own = set(english_questions(aligned)) if replies else set()  # replies to held-out questions are for measuring
    return aligned_examples(
        aligned, section.target, {question: reply for question, reply in replies.items() if question in own},
        limit=section.examples, replay=section.replay, seed=config.data.seed,
    )  # fmt: skip


def longest_examples(config: RunConfig, aligned: Sequence[Pair], questions: Sequence[str]) -> Sequence[Pair]:
    """What would be trained on, with replies to ``questions`` that are as long as they may be."""
    return training_examples(config, aligned, dict.fromkeys(questions, " a" * config.align.max_new_tokens))


def held_out_examples(config: RunConfig, held_out: Sequence[Pair], replies: Mapping[str, str]) -> Sequence[Pair]:
    """The held-out pairs with the targets that are trained on, those without a reply left out where it takes one."""
    if config.align.target == ("translation",):
        return list(held_out)
    answered = [pair for pair in held_out if pair.target in replies]
    if not answered:
        log.warning("none of the %d held-out questions has a finished reply: their loss is not measured", len(held_out))
        return []
    return aligned_examples(answered, config.align.target, replies)


def probe_texts(config: RunConfig, pairs: Sequence[Pair] = ()) -> dict[str, list[str]]:
    """Texts per language for the probe: sources and English targets of ``pairs``, or the questions of a task."""
    section = config.probe
    texts: dict[str, list[str]] = {}
    if section.task == "data":
        english: dict[str, None] = {}
        for pair in pairs:
            if len(rows := texts.setdefault(pair.source_language, [])) < section.questions:
                rows.append(pair.source)
            if len(english) < section.questions and pair.target_language == "en":
                english[pair.target] = None
        texts = {"en": list(english), **texts}
    else:
        from slamkern.data.tasks import load_task

        for question in load_task(section.task, section.languages, section.data, section.questions):
            texts.setdefault(question.language, []).append(question.question)
    wanted = section.languages or tuple(texts)
    if missing := [code for code in wanted if not texts.get(code)]:
        raise SlamkernError(f"nothing to probe in {' '.join(missing)}; there are texts in: {' '.join(texts)}")
    return {code: texts[code][: section.questions] for code in wanted}


def probe_model(
    config: RunConfig, model: Any, tokenizer: Any, pairs: Sequence[Pair], progress: bool
) -> ActivationStats:
    """Activation statistics of the probe section's texts."""
    from slamkern.probe.collect import collect_stats

    section = config.probe
    return collect_stats(
        model, tokenizer, probe_texts(config, pairs), observe=section.observe, token_budget=section.token_budget,
        max_length=section.max_length, groups=section.groups, cuda_graphs=section.cuda_graphs, progress=progress,
    )  # fmt: skip


def choose_layers(config: RunConfig, stats: str | Path) -> LayerSelection:
    """The selection of the select section: a preset, or made from a statistics file."""
    section = config.select
    if section.preset is not None:
        return LayerSelection.preset(section.preset)
    return select_layers(
        ActivationStats.load(stats), section.k, section.score, rule=section.rule, region=section.region,
        center=section.center, neuron_fraction=section.neuron_fraction, bootstrap=section.bootstrap, seed=section.seed,
    )  # fmt: skip


def measure(
    config: RunConfig,
    model: Any,
    tokenizer: Any,
    held_out: Sequence[Pair],
    replies: Mapping[str, str] = MappingProxyType({}),
    *,
    asked: tuple[str, Sequence[Question]] | None = None,
    out: Path,
    progress: bool,
) -> dict[str, Any]:
    """Held-out translation and replies where there are some, English retention, and answers, which also go to ``out``.

    ``asked``: task and questions; those of the evaluate section if not given.
    """
    from slamkern.evaluation.accuracy import evaluate_questions
    from slamkern.evaluation.translation import english_retention, translation_quality

    section, recipe = config.evaluate, config.train
    english = english_texts(config, held_out)
    values: dict[str, Any] = {
        "translation": {},
        "english_loss": english_retention(model, tokenizer, english, max_length=recipe.max_length),
        "loss_texts": loss_texts(english, held_out),
        "evaluation": None,
    }
    if held_out:
        values["translation"] = translation_quality(
            model, tokenizer, held_out, recipe.prompt, generate_limit=section.chrf_limit,
            max_new_tokens=section.max_new_tokens, max_length=recipe.max_length,
        )  # fmt: skip
    if replies:
        values["reply_loss"] = reply_losses(config, model, tokenizer, held_out, replies)
    if asked is None and section.task is not None:
        asked = section.task, section.load()
    if asked is not None:
        task, questions = asked
        result = evaluate_questions(
            model, tokenizer, questions, task=task, prompt=section.prompt_for(tokenizer),
            max_new_tokens=section.max_new_tokens, batch_size=section.batch_size, out=out, progress=progress,
        )  # fmt: skip
        values["evaluation"] = result.to_dict()
    return values


def loss_texts(english: Sequence[str], held_out: Sequence[Pair]) -> dict[str, str]:
    """Digests of what losses are measured on: two models are compared only where these are the same."""
    pairs = (text for pair in held_out for text in (pair.source_language, pair.source, pair.target))
    return {"english": texts_digest(english), "held_out": texts_digest(pairs)}


def compare_run(out: Path) -> dict[str, Any] | None:
    """The gate over a run's answers before and after training; None where there are none, or another's."""
    from slamkern.evaluation.compare import compare

    sides = [out / "evaluation" / side for side in ("before", "after")]
    if not all((side / "predictions.jsonl").is_file() for side in sides):
        return None
    # What tells languages of one script apart is in an extra.
    drift = importlib.util.find_spec("py3langid") is not None
    try:
        return compare(*sides, drift=drift).to_dict()
    except SlamkernError as error:
        log.warning("answers before and after are not compared: %s", error)
        return None


def reply_losses(
    config: RunConfig, model: Any, tokenizer: Any, held_out: Sequence[Pair], replies: Mapping[str, str]
) -> dict[str, float]:
    """Mean loss (nats a token) of the model's own English replies to held-out questions, by their language.

    ``en`` is that of the English questions themselves. Languages without a reply are left out.
    """
    from slamkern.training.batches import context_of, mean_loss, tokenize_within

    asked = [pair for pair in held_out if pair.kind == "question" and pair.target in replies]
    rows = {text: Pair(text, replies[text], "en", "en", "response") for text in english_questions(asked)}
    pairs = [*rows.values(), *aligned_examples(asked, ("reply",), replies)] if asked else []
    losses: dict[str, float] = {}
    for code in dict.fromkeys(pair.source_language for pair in pairs):
        chosen = [pair for pair in pairs if pair.source_language == code]
        prompt = get_prompt(config.train.prompt, tokenizer)
        examples = tokenize_within(chosen, tokenizer, prompt, config.train.max_length, context_of(model))
        losses[code] = mean_loss(model, examples)
    return losses


def english_texts(config: RunConfig, held_out: Sequence[Pair]) -> list[str]:
    """What the retention loss is measured on (see EvaluateSection)."""
    source = config.evaluate.english
    if source is None:
        return list(dict.fromkeys(pair.target for pair in held_out if pair.target_language == "en"))
    if source == "corpus:":
        from slamkern.data.synthetic import generate

        problems = generate(100, 0, ["en"], "test")
        return [f"{problem.questions['en']} {problem.solutions['en']}" for problem in problems]
    from slamkern.data.readers import read_lines

    return [line for line in read_lines(Path(source)) if line.strip()]
