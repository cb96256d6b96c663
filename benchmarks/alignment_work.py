"""The work of one cell of the alignment study, a process each: the model's own answers, training, questions.

    python -m benchmarks.alignment_work answer   --study FOLDER --part I/N
    python -m benchmarks.alignment_work train    --study FOLDER --cell NAME
    python -m benchmarks.alignment_work evaluate --study FOLDER --cell NAME --part I/N

Every part appends to its folder as it goes and is started again where it stopped. What a cell is: ``alignment``.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slamkern.data.pairs import Pair, load_pairs
from slamkern.data.prompts import get_prompt
from slamkern.data.tasks import Question, load_task
from slamkern.evaluation.accuracy import evaluate_questions
from slamkern.evaluation.generation import generate
from slamkern.evaluation.translation import english_retention, translation_quality
from slamkern.files import write_json
from slamkern.pipeline.loading import load_model
from slamkern.reading import iterate_lines, parse_json, read_json
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import load_delta
from slamkern.training.config import TrainConfig
from slamkern.training.loop import train

TRAINED_LANGUAGES = ("de", "es", "fr", "ja", "ru", "sw", "zh")
# Which questions of the parallel file serve what: the same for every cell, and never the same for two purposes.
ANSWERED, TRANSLATED, HELD_OUT = range(400), range(400, 1900), range(1900, 2000)
# In the order in which they come: an earlier stop only makes them fewer.
HELD_OUT_LANGUAGES, HELD_OUT_PAIRS, HELD_OUT_TEXTS = ("de", "es", "sw", "zh"), 6, 24


class Study:
    """A folder with ``study.json`` (model, data, prompt, lengths), the model's own answers, and a folder a cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = read_json(folder / "study.json")

    def cell(self, name: str) -> dict[str, Any]:
        return dict(read_json(self.folder / "cells" / name / "cell.json"))

    def load(self) -> tuple[Any, Any]:
        return load_model(self.settings["model"], dtype=self.settings["dtype"])

    def questions(self, code: str) -> list[str]:
        """All training questions in one language, line by line parallel with those of the others."""
        folder = Path(self.settings["pairs"])
        pairs = load_pairs(folder, ["de" if code == "en" else code])
        return [pair.target if code == "en" else pair.source for pair in pairs]

    def answers(self) -> dict[int, str]:
        """Index of an English question -> the model's own answer, for those that it brought to an end."""
        found: dict[int, str] = {}
        for file in sorted(self.folder.glob("answers/*.jsonl")):
            rows = (parse_json(line, str(file)) for line in iterate_lines(file) if line.endswith("}"))
            found |= {row["index"]: row["text"] for row in rows if row["ended"]}
        return {index: found[index] for index in sorted(found)}


def answer(study: Study, part: int, parts: int) -> None:
    """The model's greedy answers to English training questions: what it says where it understands."""
    file = study.folder / "answers" / f"part-{part}.jsonl"
    file.parent.mkdir(exist_ok=True)
    done = {parse_json(line, str(file))["index"] for line in iterate_lines(file)} if file.exists() else set()
    model, tokenizer = study.load()
    english, prompt = study.questions("en"), get_prompt(study.settings["prompt"], tokenizer)
    wanted = [i for i in ANSWERED[: study.settings["answers"]][part::parts] if i not in done]
    limit = study.settings["answer_tokens"]
    texts = generate(
        model, tokenizer, [prompt.question(english[i], "en") for i in wanted], max_new_tokens=limit,
        batch_size=study.settings["batch_size"],
    )  # fmt: skip
    with file.open("a") as out:
        for position, text in texts:
            ended = len(tokenizer(text, add_special_tokens=False)["input_ids"]) < limit - 1
            row = {"index": wanted[position], "ended": ended, "text": text.strip()}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()


def examples(study: Study, mixture: dict[str, int], seed: int) -> list[Pair]:
    """Training examples: so many of each kind, languages in turn.

    translate: question -> English question, by SLAM's instruction. distill: question -> the model's own answer to the
    English question. translate_solve: question -> English question, then that answer. replay: English question -> that
    answer. Every kind takes the questions in an order of its own.
    """
    texts = {code: study.questions(code) for code in ("en", *TRAINED_LANGUAGES)}
    own = study.answers()
    pairs = []
    for kind, count in mixture.items():
        indices = list(TRANSLATED) if kind == "translate" else list(own)
        random.Random(f"{seed} {kind}").shuffle(indices)
        for number in range(count):
            index, code = indices[number % len(indices)], TRAINED_LANGUAGES[number % len(TRAINED_LANGUAGES)]
            code = "en" if kind == "replay" else code
            english = texts["en"][index]
            target = {
                "translate": english,
                "translate_solve": f"{english}\n\n{own.get(index)}",
                "distill": own.get(index),
                "replay": own.get(index),
            }[kind]
            assert target is not None
            pairs.append(
                Pair(texts[code][index], target, code, "en", "question" if kind == "translate" else "response")
            )
    return pairs


def learn(study: Study, name: str) -> None:
    """Train the cell's tensors; the folder ``trained`` holds the delta."""
    cell, out = study.cell(name), study.folder / "cells" / name / "trained"
    model, tokenizer = study.load()
    apply_selection(model, cell["layers"], cell["projections"])
    pairs = examples(study, cell["mixture"], cell["seed"])
    config = TrainConfig(
        learning_rate=cell["learning_rate"], lr_scheduler_type=cell["schedule"], warmup_steps=cell["warmup_steps"],
        num_train_epochs=cell["epochs"], tokens_per_batch=cell["tokens_per_batch"], seed=cell["seed"],
        prompt=study.settings["prompt"], logging_steps=1, save_steps=10, output_dir=out,
    )  # fmt: skip
    selection = LayerSelection(tuple(cell["layers"]))
    result = train(model, tokenizer, pairs, config, selection=selection, resume=True, progress=False)
    write_json(
        out / "summary.json",
        {
            "examples": len(pairs),
            "steps": result.steps,
            "tokens": result.tokens,
            "loss_first": result.loss_first,
            "loss_last": result.loss_last,
            "tokens_per_second": result.tokens_per_second,
            "trained_parameters": result.trained_parameters,
            "total_parameters": result.total_parameters,
        },
    )


@torch.no_grad()
def changed(study: Study, cell: dict[str, Any], name: str) -> tuple[Any, Any]:
    """The model with the cell's delta, scaled: W = W_base + scale * (W_trained - W_base)."""
    model, tokenizer = study.load()
    source = cell.get("of", name)
    if cell["layers"]:
        before = {key: value.clone() for key, value in model.state_dict().items() if ".mlp." in key}
        for key in load_delta(model, study.folder / "cells" / source / "trained"):
            weight = model.state_dict()[key]
            weight.copy_(torch.lerp(before[key].float(), weight.float(), cell["scale"]))
        model.name_or_path = f"{model.name_or_path} + {name}"
    return model, tokenizer


def ask(study: Study, name: str, part: int, parts: int) -> None:
    """Answer this part of the cell's questions, and measure the held-out losses in part 0."""
    cell, folder = study.cell(name), study.folder / "cells" / name
    model, tokenizer = changed(study, cell, name)
    prompt = get_prompt(study.settings["prompt"], tokenizer)
    start = cell.get("reply_start", "")
    asked = replace(prompt, question_suffix=start) if start else prompt
    if part == 0 and not (folder / "losses.json").exists():
        pairs = [
            Pair(study.questions(code)[i], study.questions("en")[i], code)
            for code in HELD_OUT_LANGUAGES
            for i in HELD_OUT[:HELD_OUT_PAIRS]
        ]
        quality = translation_quality(model, tokenizer, pairs, prompt, generate_limit=0, batch_tokens=1024)
        english = [study.questions("en")[i] for i in HELD_OUT[:HELD_OUT_TEXTS]]
        write_json(
            folder / "losses.json",
            {
                "translation_loss": {code: row["loss"] for code, row in quality.items()},
                "english_loss": english_retention(model, tokenizer, english, batch_tokens=1024),
            },
        )
    evaluate_questions(
        model, tokenizer, chosen_questions(study, cell)[part::parts], task="msvamp", prompt=asked,
        max_new_tokens=study.settings["new_tokens"], batch_size=study.settings["batch_size"],
        out=folder / f"part-{part}", progress=False,
    )  # fmt: skip


def chosen_questions(study: Study, cell: dict[str, Any]) -> list[Question]:
    """The questions of a cell, a language at a time interleaved, so that an unfinished part has some of each."""
    first, last = cell["questions"]
    rows = load_task("msvamp", cell["languages"], study.settings["msvamp"], last)
    return sorted(
        (row for row in rows if int(row.id.rsplit("-", 1)[1]) > first),
        key=lambda row: (int(row.id.rsplit("-", 1)[1]), row.language),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("answer", "train", "evaluate"))
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--cell")
    parser.add_argument("--part", default="0/1")
    options = parser.parse_args(argv)
    study = Study(options.study)
    part, parts = map(int, options.part.split("/"))
    if options.work == "answer":
        answer(study, part, parts)
    elif options.work == "train":
        learn(study, options.cell)
    else:
        ask(study, options.cell, part, parts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
