"""A whole run in one folder: probe, select, measure, train, measure again, report. Straight-line and resumable.

    run.json             the record of the folder (see run_folder): configuration, seconds of each stage
    stats.safetensors    what the probe saw          selection.json   which layers are trained and why
    replies.json         the model's own, where align asks for them
    train/               log, checkpoints, delta     evaluation/      before and after: scores, predictions
    metrics.json         every number of the run     report.html      the same to look at, with figures/*.png

A stage whose file is there is not done again: files appear whole or not at all, and a folder made with another
configuration is refused. Whatever interrupts a run, the same command goes on. Several processes do each stage together,
and the main one writes.
"""

import logging
import platform
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from slamkern import distributed
from slamkern.data.pairs import Pair
from slamkern.files import write_checked
from slamkern.modules.patch import patch_model
from slamkern.pipeline.base_weights import BaseWeights, bind
from slamkern.pipeline.checks import check_run
from slamkern.pipeline.config import RunConfig
from slamkern.pipeline.loading import describe, load_model
from slamkern.pipeline.stages import (
    alignment_pairs,
    choose_layers,
    compare_run,
    measure,
    model_replies,
    probe_model,
    reply_questions,
    training_examples,
)
from slamkern.run_folder import RunFolder, command_line
from slamkern.schemas.metrics import read_measurement, read_metrics
from slamkern.selection.layers import LayerSelection
from slamkern.version import __version__, installed_version

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A folder claimed for a configuration; ``seconds`` says how long each finished stage took."""

    config: RunConfig
    folder: RunFolder

    @classmethod
    @contextmanager
    def claim(cls, config: RunConfig, out: str | Path) -> Iterator["Run"]:
        """Hold ``out`` for this configuration: new, empty, or its own from before; anything else is refused."""
        with RunFolder(out, "pipeline", inside=("evaluation", "figures")) as folder:
            folder.claim(config.model_dump(mode="json"))
            folder.notes.setdefault("seconds", {})
            yield cls(config, folder)

    @property
    def out(self) -> Path:
        return self.folder.path

    @property
    def seconds(self) -> dict[str, float]:
        return self.folder.notes["seconds"]

    @property
    def finished(self) -> bool:
        return distributed.on_main(lambda: "report" in self.seconds and (self.out / "report.html").is_file())

    def stage(self, name: str, file: str, work: Callable[[Path], Any]) -> Path:
        """Do ``work(path)``, in every process, unless its file is there already; note how long it took."""
        path = self.out / file
        if distributed.on_main(lambda: name in self.seconds and path.is_file()):
            log.info("%s: done before", name)
            return path
        log.info("%s ...", name)
        self.folder.save()
        started = time.perf_counter()
        work(path)
        self.seconds[name] = round(time.perf_counter() - started, 1)
        self.folder.save()
        return path

    def results(self) -> dict[str, Any]:
        """metrics.json of a finished run."""
        return distributed.on_main(lambda: read_metrics(self.out / "metrics.json"))


def run(config: RunConfig, out: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Do what is still to be done of a run in ``out``; returns what ``metrics.json`` holds.

    Raises SlamkernError for bad input before any file is written where that can be known, and OSError for a full disk.
    """
    with Run.claim(config, out) as claimed:
        if claimed.finished:
            log.info("%s is finished", out)
            return claimed.results()
        pairs = alignment_pairs(config)
        check_run(config, *pairs)
        return go_on(claimed, *pairs, progress=progress)


def go_on(claimed: Run, aligned: Sequence[Pair], held_out: Sequence[Pair], *, progress: bool = True) -> dict[str, Any]:
    """The stages that are still to be done of a run that trains on ``aligned`` and measures on ``held_out``."""
    from slamkern.evaluation.replies import count_unfinished, read_replies
    from slamkern.report.html import write_report
    from slamkern.selection.trainable import apply_selection
    from slamkern.training.loop import train

    config, out = claimed.config, claimed.out
    source = BaseWeights(config.model)
    model, tokenizer = load_model(**config.model.arguments())
    base_weights = source.digest(model)
    bind(claimed.folder.notes, "base_weights", base_weights, out, config.model.name)
    patch_model(model)
    log.info("%s: %s", config.model.name, describe(model))

    stats_path = claimed.stage(
        "probe",
        "stats.safetensors",
        lambda path: distributed.on_main(
            partial(probe_model(config, model, tokenizer, aligned, progress=progress).save, path)
        ),
    )
    selection_path = claimed.stage(
        "select",
        "selection.json",
        lambda path: distributed.on_main(lambda: choose_layers(config, stats_path).save(path)),
    )
    selection = distributed.on_main(lambda: LayerSelection.load(selection_path))
    questions = reply_questions(config, aligned, held_out)
    replies: dict[str, str] = {}
    unfinished = 0
    if questions:
        path = claimed.stage(
            "replies",
            "replies.json",
            lambda path: model_replies(config, model, tokenizer, questions, path, progress=progress),
        )
        replies, unfinished = distributed.on_main(lambda: (read_replies(path), count_unfinished(path)))
    examples = training_examples(config, aligned, replies)
    apply_selection(model, selection, config.select.projections)

    def measure_into(path: Path) -> None:
        values = measure(config, model, tokenizer, held_out, replies, out=path.with_suffix(""), progress=progress)
        distributed.on_main(lambda: write_checked(path, values))

    before = claimed.stage("before", "evaluation/before.json", measure_into)
    started = time.perf_counter()
    result = train(
        model, tokenizer, examples, replace(config.train, output_dir=out / "train"),
        selection=selection, resume=True, progress=progress,
    )  # fmt: skip
    claimed.seconds.setdefault("train", round(time.perf_counter() - started, 1))
    after = claimed.stage("after", "evaluation/after.json", measure_into)

    metrics = {
        "slamkern": __version__,
        "model": config.model.name,
        "model_description": describe(model),
        "base_weights": base_weights,
        "made": {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(command_line()),
            "versions": {"python": platform.python_version()}
            | {name: installed_version(name) or "not installed" for name in ("slamkern", "torch", "transformers")},
        },
        "data": {"path": config.data.path, "train_pairs": len(aligned), "held_out_pairs": len(held_out)},
        "training_prompt": config.train.prompt,
        "examples": dict(Counter(pair.source_language for pair in examples)),
        "unfinished_replies": unfinished,
        "selected_layers": list(selection.layers),
        **{name: value for name, value in asdict(result).items() if name not in ("output_dir", "held_out_loss")},
        "before": distributed.on_main(lambda: read_measurement(before)),
        "after": distributed.on_main(lambda: read_measurement(after)),
        "seconds": dict(claimed.seconds),
        "config": config.model_dump(mode="json"),
    }
    distributed.on_main(lambda: write_checked(out / "metrics.json", metrics))
    claimed.stage(
        "report",
        "report.html",
        lambda path: distributed.on_main(lambda: write_report(path.parent, compare_run(out))),
    )
    return metrics
