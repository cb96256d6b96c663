"""The work of a bake-off, a process each: ``python -m slamkern.bakeoff.work FOLDER FILE``, or ``CELL --seed N``.

Everything appends to its folder as it goes and is started again where it stopped. A task is done when its file is
there: ``replies.json``, ``stats.safetensors``, ``weight_snr.json`` or ``gradient_norm.json`` of the base model;
``screen.json`` or ``final.json`` in ``cells/NAME/seed-N``.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from slamkern.bakeoff.config import Bakeoff, Cell, build_bakeoff
from slamkern.bakeoff.layers import GRADIENT_NORM, STATS, WEIGHT_SNR, choose
from slamkern.bakeoff.trainable import fold_adapters, make_trainable, scale_change, weight_distance
from slamkern.data.alignment import english_questions
from slamkern.data.pairs import Pair
from slamkern.errors import SlamkernError
from slamkern.evaluation.replies import read_replies
from slamkern.files import read_checked, write_checked
from slamkern.pipeline import stages
from slamkern.pipeline.base_weights import BaseWeights, bind
from slamkern.pipeline.config import build_config
from slamkern.pipeline.loading import load_model
from slamkern.run_folder import LOCK, read_record

KIND, RECORD, REPLIES, FACTS = "bakeoff", "bakeoff.json", "replies.json", "facts.json"


def read_bakeoff(folder: Path) -> Bakeoff:
    """The bake-off of a folder."""
    settings, notes = read_record(folder / RECORD, KIND)
    return build_bakeoff(build_config(settings["run"]), {**settings["bakeoff"], "cells": notes["cells"]}, str(folder))


class Work:
    """A bake-off's folder as its processes see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bakeoff = read_bakeoff(folder)
        self.run = self.bakeoff.run
        self.aligned, self.held_out = stages.alignment_pairs(self.run)

    def load(self) -> tuple[Any, Any]:
        """(base model, tokenizer). SlamkernError where other weights were measured or trained in this folder."""
        source = BaseWeights(self.run.model)
        model, tokenizer = load_model(**self.run.model.arguments())
        self._bind(source.digest(model))
        return model, tokenizer

    def _bind(self, weights: str) -> None:
        record = self.folder / RECORD
        with FileLock(self.folder / f".{RECORD}{LOCK}"):  # the first tasks run side by side
            values = read_checked(record)
            noted = "base_weights" in values
            bind(values, "base_weights", weights, self.folder, self.run.model.name)
            if not noted:
                write_checked(record, values)

    @property
    def questions(self) -> list[str]:
        """The English questions that the model replies to: those of training where a cell needs them, the held-out."""
        cells = [cell for cell in self.bakeoff.cells.values() if cell.train != "none"]
        needed = any(self.bakeoff.of(cell, 0).align.needs_replies for cell in cells)
        own = english_questions(self.aligned, self.run.align.questions) if needed else []
        return own + english_questions(self.held_out)

    @property
    def replies(self) -> dict[str, str]:
        return read_replies(self.folder / REPLIES)


def prepare(work: Work, name: str) -> None:
    """Measure the base model: the file ``name``."""
    path = work.folder / name
    model, tokenizer = work.load()
    if name == REPLIES:
        stages.model_replies(work.run, model, tokenizer, work.questions, path, progress=False)
    elif name == STATS:
        stages.probe_model(work.run, model, tokenizer, work.aligned, progress=False).save(path)
    elif name == WEIGHT_SNR:
        from slamkern.selection.weight_snr import weight_snr

        write_checked(path, {"scores": weight_snr(model, work.run.select.projections)})
    elif name == GRADIENT_NORM:
        from slamkern.training.batches import context_of, tokenize
        from slamkern.training.gradient_norm import layer_gradient_norms

        pairs = stages.training_examples(work.run, work.aligned, work.replies)
        examples = tokenize(pairs, tokenizer, work.run.train, context=context_of(model))
        norms = layer_gradient_norms(model, examples, work.run.train.tokens_per_batch, batches=4)
        write_checked(path, {"scores": norms})
    else:
        raise SlamkernError(f"nothing is called {name}")


def run_cell(work: Work, cell: Cell, seed: int, *, final: bool) -> None:
    """Train a cell, or take up its training, and measure it: held-out losses, and answers where there is a task."""
    config = work.bakeoff.of(cell, seed, final=final)
    folder = work.folder / "cells" / cell.name / f"seed-{seed}"
    model, tokenizer = work.load()
    facts: dict[str, Any] = {}
    if cell.train != "none":
        source = work.bakeoff.trained(cell)
        recipe = work.bakeoff.of(source, seed)
        examples = stages.training_examples(recipe, work.aligned, work.replies)
        facts = learn(work, source, seed, model, tokenizer, examples, recipe.train)
    if cell.train == "scaled":
        base, _ = work.load()
        scale_change(base, model, cell.scale)
        facts["distance"] = weight_distance(base, model)
    model.name_or_path = f"{model.name_or_path} + {cell.name}"
    name = "final" if final else "screen"
    started = time.process_time()
    values = stages.measure(
        config, model, tokenizer, work.held_out, work.replies, out=folder / name, progress=False
    )  # fmt: skip
    seconds = {"measure_processor_seconds": time.process_time() - started}
    write_checked(folder / f"{name}.json", {"cell": cell.name, "seed": seed, "training": facts, **values, **seconds})


def learn(
    work: Work, cell: Cell, seed: int, model: Any, tokenizer: Any, examples: Sequence[Pair], recipe: Any
) -> dict[str, Any]:
    """Train what the cell names; the model has other weights afterwards. Returns what is known of the training."""
    from slamkern.training.loop import train

    out = work.folder / "cells" / cell.name / f"seed-{seed}" / "train"
    facts_file = out / FACTS
    num_layers = model.config.get_text_config().num_hidden_layers
    selection = choose(cell, num_layers, work.folder, seed)
    saved = make_trainable(model, cell, selection, seed)
    fresh = not (out / "metrics.jsonl").exists()
    started = time.process_time()
    result = train(
        model, tokenizer, examples, replace(recipe, output_dir=out), selection=saved, resume=True, progress=False
    )
    seconds = time.process_time() - started
    if cell.train == "lora":
        fold_adapters(model)
    if facts_file.exists():
        return dict(read_checked(facts_file))
    base, _ = work.load()
    facts = {
        "layers": list(selection.layers) if cell.train in ("ffn", "attention") else None,
        "neurons": sum(map(len, selection.neurons.values())) if selection.neurons else None,
        "examples": len(examples), "steps": result.steps, "tokens": result.tokens,
        "learning_rate": recipe.learning_rate, "loss_first": result.loss_first, "loss_last": result.loss_last,
        "trained_parameters": result.trained_parameters,
        "total_parameters": sum(parameter.numel() for parameter in base.parameters()),
        "seconds": result.tokens / result.tokens_per_second,
        "processor_seconds": seconds if fresh else None,
        "peak_memory_bytes": result.peak_memory_bytes, "distance": weight_distance(base, model),
    }  # fmt: skip
    write_checked(facts_file, facts)
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slamkern.bakeoff.work", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", help="a file to prepare, or a cell")
    parser.add_argument("--seed", type=int, help="of a cell")
    parser.add_argument("--final", action="store_true")
    options = parser.parse_args(argv)
    work = Work(options.folder)
    try:
        if options.seed is None:
            prepare(work, options.what)
        else:
            run_cell(work, work.bakeoff.cells[options.what], options.seed, final=options.final)
    except SlamkernError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
