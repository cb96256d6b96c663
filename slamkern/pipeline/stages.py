"""What each stage of a run does with its section of the configuration; their order and their folder are in ``run``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slamkern.data.pairs import Pair, load_pairs, split_pairs
from slamkern.errors import SlamkernError
from slamkern.pipeline.sections import RunConfig
from slamkern.probe.stats import ActivationStats
from slamkern.selection.layers import LayerSelection, select_layers


def alignment_pairs(config: RunConfig) -> tuple[Sequence[Pair], list[Pair]]:
    """(pairs to train on, held-out pairs) of the data section."""
    data = config.data
    if not data.path:
        raise SlamkernError("no data given: use --data or data.path (a folder, a JSON file, corpus: or hf:owner/name)")
    pairs = load_pairs(data.path, data.languages, content=data.content, limit=data.limit)
    return split_pairs(pairs, data.held_out, data.seed)


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
        max_length=section.max_length, groups=section.groups, progress=progress,
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
    config: RunConfig, model: Any, tokenizer: Any, held_out: Sequence[Pair], *, out: Path, progress: bool
) -> dict[str, Any]:
    """Held-out translation, English retention and answer accuracy; predictions go to ``out``."""
    from slamkern.evaluation.accuracy import evaluate
    from slamkern.evaluation.translation import english_retention, translation_quality

    section, recipe = config.evaluate, config.train
    translation = translation_quality(
        model, tokenizer, held_out, recipe.prompt, generate_limit=section.chrf_limit,
        max_new_tokens=section.max_new_tokens, max_length=recipe.max_length,
    )  # fmt: skip
    values: dict[str, Any] = {
        "translation": translation,
        "english_loss": english_retention(model, tokenizer, english_texts(config, held_out)),
        "evaluation": None,
    }
    if section.task is not None:
        result = evaluate(
            model, tokenizer, section.task, section.languages, data=section.data, prompt=section.prompt,
            limit=section.limit, max_new_tokens=section.max_new_tokens, batch_size=section.batch_size,
            out=out, progress=progress,
        )  # fmt: skip
        values["evaluation"] = result.to_dict()
    return values


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
