"""A whole run in one folder: probe, select, measure, train, measure again, report. Straight-line and resumable.

    run.json             configuration and its fingerprint; a folder belongs to one configuration
    stats.safetensors    what the probe saw          selection.json   which layers are trained and why
    train/               log, checkpoints, delta     evaluation/      before and after: scores, predictions
    metrics.json         every number of the run     report.html      the same to look at, with figures/*.png

A stage whose file is there is not done again: files appear whole or not at all, and a folder made with another
configuration is refused. Whatever interrupts a run, the same command goes on.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slamkern.data.pairs import Pair, load_pairs, split_pairs
from slamkern.errors import SlamkernError
from slamkern.files import write_json
from slamkern.modules.patch import patch_model
from slamkern.pipeline.config import RunConfig, difference
from slamkern.pipeline.loading import describe, load_model
from slamkern.probe.stats import ActivationStats
from slamkern.selection.layers import LayerSelection, select_layers
from slamkern.version import __version__

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A folder claimed for a configuration; ``seconds`` says how long each finished stage took."""

    config: RunConfig
    out: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def claim(cls, config: RunConfig, out: str | Path) -> "Run":
        """Open ``out`` for this configuration: new, empty, or its own from before; anything else is refused."""
        out = Path(out)
        if out.exists() and not out.is_dir():
            raise SlamkernError(f"{out} is a file; choose a folder for the run")
        path = out / "run.json"
        if not path.is_file():
            if out.is_dir() and any(out.iterdir()):
                raise SlamkernError(f"{out} is not empty and holds no run; choose another --out")
            run = cls(config, out)
            run.save()
            return run
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            changed = difference(saved["config"], config.model_dump(mode="json"))
            seconds = dict(saved["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SlamkernError(f"{path} is not of a slamkern run; choose another --out") from error
        if changed:
            raise SlamkernError(f"{out} holds another run: {changed}; choose another --out or the same configuration")
        return cls(config, out, seconds)

    def save(self) -> None:
        values = {
            "slamkern": __version__,
            "fingerprint": self.config.fingerprint(),
            "config": self.config.model_dump(mode="json"),
            "seconds": self.seconds,
        }
        write_json(self.out / "run.json", values)

    @property
    def finished(self) -> bool:
        return "report" in self.seconds and (self.out / "report.html").is_file()

    def stage(self, name: str, file: str, work: Callable[[Path], Any]) -> Path:
        """Do ``work(path)`` unless its file is there already; note how long it took."""
        path = self.out / file
        if name in self.seconds and path.is_file():
            log.info("%s: done before", name)
            return path
        log.info("%s ...", name)
        started = time.perf_counter()
        work(path)
        self.seconds[name] = round(time.perf_counter() - started, 1)
        self.save()
        return path


def run(config: RunConfig, out: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Do what is still to be done of a run in ``out``; returns what ``metrics.json`` holds.

    Raises SlamkernError for bad input before any file is written where that can be known, and OSError for a full disk.
    """
    from slamkern.report.html import write_report
    from slamkern.selection.trainable import apply_selection
    from slamkern.training.loop import train

    aligned, held_out = alignment_pairs(config)
    claimed = Run.claim(config, out)
    out = claimed.out
    if claimed.finished:
        log.info("%s is finished", out)
        return _metrics(out / "metrics.json")
    model, tokenizer = load_model(config.model.name, config.model.dtype, config.model.device)
    patch_model(model)
    log.info("%s: %s", config.model.name, describe(model))

    stats_path = claimed.stage(
        "probe", "stats.safetensors", lambda path: probe(config, model, tokenizer, aligned, progress).save(path)
    )
    selection_path = claimed.stage("select", "selection.json", lambda path: select(config, stats_path).save(path))
    selection = LayerSelection.load(selection_path)
    apply_selection(model, selection, config.select.projections)

    def measure_into(path: Path) -> None:
        write_json(path, measure(config, model, tokenizer, held_out, out=path.with_suffix(""), progress=progress))

    before = claimed.stage("before", "evaluation/before.json", measure_into)
    started = time.perf_counter()
    result = train(
        model, tokenizer, aligned, config.train_config(out / "train"),
        selection=selection, resume=True, progress=progress,
    )  # fmt: skip
    claimed.seconds.setdefault("train", round(time.perf_counter() - started, 1))
    after = claimed.stage("after", "evaluation/after.json", measure_into)

    metrics = {
        "slamkern": __version__,
        "model": config.model.name,
        "model_description": describe(model),
        "data": {"path": config.data.path, "train_pairs": len(aligned), "held_out_pairs": len(held_out)},
        "training_prompt": config.train_config().prompt,
        "selected_layers": list(selection.layers),
        **{name: value for name, value in asdict(result).items() if name not in ("output_dir", "held_out_loss")},
        "before": _metrics(before),
        "after": _metrics(after),
        "seconds": dict(claimed.seconds),
        "config": config.model_dump(mode="json"),
    }
    write_json(out / "metrics.json", metrics)
    claimed.stage("report", "report.html", lambda path: write_report(path.parent))
    return metrics


def alignment_pairs(config: RunConfig) -> tuple[list[Pair], list[Pair]]:
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
        texts["en"] = list(dict.fromkeys(pair.target for pair in pairs if pair.target_language == "en"))
        for pair in pairs:
            texts.setdefault(pair.source_language, []).append(pair.source)
    else:
        from slamkern.data.tasks import load_task

        for question in load_task(section.task, section.languages, section.path, section.questions):
            texts.setdefault(question.language, []).append(question.question)
    wanted = section.languages or tuple(texts)
    if missing := [code for code in wanted if not texts.get(code)]:
        raise SlamkernError(f"nothing to probe in {' '.join(missing)}; there are texts in: {' '.join(texts)}")
    return {code: texts[code][: section.questions] for code in wanted}


def probe(config: RunConfig, model: Any, tokenizer: Any, pairs: Sequence[Pair], progress: bool) -> ActivationStats:
    """Activation statistics of the probe section's texts."""
    from slamkern.probe.collect import collect_stats

    section = config.probe
    return collect_stats(
        model, tokenizer, probe_texts(config, pairs), observe=section.observe, token_budget=section.token_budget,
        max_length=section.max_length, groups=section.groups, progress=progress,
    )  # fmt: skip


def select(config: RunConfig, stats: str | Path) -> LayerSelection:
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

    section, recipe = config.evaluate, config.train_config()
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
            model, tokenizer, section.task, section.languages, data=section.path, prompt=section.prompt,
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


def _metrics(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SlamkernError(f"{path} is not JSON ({error}); remove it to make it again") from error
    return values
