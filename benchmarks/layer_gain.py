"""Which score predicts which layer to train? Every layer trained by itself for a few steps, and what that gained.

    python -m benchmarks.layer_gain --model smollm2 --pairs FOLDER --work FOLDER [--prompt chat] [--name NAME]

From the same base weights and on the same batches, ``up_proj`` and ``down_proj`` of one layer are trained, first on
translating questions into English (``translate``), then, from the base again, on the model's own English replies to
questions in other languages (``reply``). The gain is how much the loss of held-out questions falls, of both kinds.
`layer_scores` tells how well each score of a layer, known before training, orders the layers by that gain, and how many
questions a language make the order stable.

``--work`` keeps the statistics, the replies and a file a layer; the same command goes on where it was stopped, and
every finished layer is in the result file, ``results/layer-gain-NAME.json``. The pairs are a folder of question pairs
(``data.pairs``), of which the first questions are probed, later ones trained on, and the last ones held out.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import layer_scores
from benchmarks.prefix_cache import PrefixCache
from slamkern import collect_stats, patch_model
from slamkern.data.packing import IGNORE, Example
from slamkern.data.pairs import Pair, load_pairs
from slamkern.data.prompts import encode_prompts, get_prompt
from slamkern.data.tokenization import tokenize_pairs
from slamkern.evaluation.generation import generate
from slamkern.files import write_json
from slamkern.modules.packed_attention import packed_attention
from slamkern.pipeline.loading import load_model
from slamkern.progress import progress_bar
from slamkern.reading import read_json
from slamkern.selection.trainable import apply_selection, trained_parameters
from slamkern.training.accumulate import Accumulator
from slamkern.training.batches import StepPlan, sum_loss, supervised_tokens
from slamkern.training.config import TrainConfig
from slamkern.training.loss import read_head
from slamkern.training.optimizer import MasterAdamW, learning_rate

LANGUAGES = ("de", "es", "sw", "zh")
PROBED, TRAINED, HELD_OUT = 64, 24, 8  # questions: the first ones, those after them, the last ones
STEPS, TOKENS, RATE, WARMUP = 12, 512, 2e-4, 2
REPLY_TOKENS = 64
GRADIENT_BATCHES = 4
TASKS = ("translate", "reply")

Losses = list[dict[str, Any]]  # a held-out example: its kind, language and question, loss summed over tokens, tokens


class Study:
    """A model, its questions as token sequences, and the folder that keeps what was measured."""

    def __init__(self, model: str, pairs: Path, work: Path, prompt: str, dtype: str) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self.model, self.tokenizer = load_model(model, dtype)
        patch_model(self.model)
        self.model.requires_grad_(False)
        self.num_layers = len(self.model.get_decoder().layers)
        self.prompt = get_prompt(prompt, self.tokenizer)
        self.config = TrainConfig(
            learning_rate=RATE, warmup_steps=WARMUP, max_steps=STEPS, tokens_per_batch=TOKENS, max_length=TOKENS
        )
        rows = {code: load_pairs(pairs, [code]) for code in LANGUAGES}
        self.questions = {"en": [pair.target for pair in rows[LANGUAGES[0]]]}
        self.questions |= {code: [pair.source for pair in rows[code]] for code in LANGUAGES}
        number = len(self.questions["en"])
        self.trained = range(PROBED, PROBED + TRAINED)
        self.held_out = range(number - HELD_OUT, number)
        self.head = read_head(self.model)

    def probe(self) -> None:
        """``stats.safetensors``: one group a question, so that any number of questions can be looked at afterwards."""
        path = self.work / "stats.safetensors"
        if not path.exists():
            texts = {code: questions[:PROBED] for code, questions in self.questions.items()}
            collect_stats(self.model, self.tokenizer, texts, groups=PROBED, token_budget=2048).save(path)

    def replies(self) -> dict[int, str]:
        """The model's own greedy replies to the English questions, cut at ``REPLY_TOKENS``."""
        path = self.work / "replies.json"
        if not path.exists():
            wanted = [*self.trained, *self.held_out]
            asked = [self.prompt.question(self.questions["en"][index], "en") for index in wanted]
            texts = generate(self.model, self.tokenizer, asked, max_new_tokens=REPLY_TOKENS, batch_size=32)
            write_json(path, {str(wanted[position]): text.strip() for position, text, _ in texts})
        return {int(index): text for index, text in read_json(path).items()}

    def examples(self, task: str, numbers: Iterable[int]) -> list[tuple[str, int, Example]]:
        """(language, question, sequence) of what is translated or replied to; those that are too long are left out."""
        found = []
        replies = self.replies() if task == "reply" else {}
        for number in numbers:
            for code in LANGUAGES:
                text, english = self.questions[code][number], self.questions["en"][number]
                if task == "reply":
                    example = self._reply(self.prompt.question(text, code), replies[number])
                else:
                    pair = Pair(text, english, code)
                    (example,) = tokenize_pairs([pair], self.tokenizer, self.prompt, max_length=10**6)
                if len(example.input_ids) <= TOKENS:
                    found.append((code, number, example))
        return found

    def _reply(self, prompt: str, reply: str) -> Example:
        """Without an end-of-sequence token: most replies are cut."""
        (before,) = encode_prompts([prompt], self.tokenizer)
        after = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        return Example((*before, *after), (*[IGNORE] * len(before), *after))

    @torch.no_grad()
    def losses(self) -> Losses:
        """The loss of every held-out example, alone in its batch."""
        return [
            {
                "kind": task, "language": code, "question": number, "tokens": supervised_tokens([example]),
                "loss": float(sum_loss(self.model, self.head, [example], packing=True)),
            }
            for task in TASKS
            for code, number, example in self.examples(task, self.held_out)
        ]  # fmt: skip

    def batches(self, task: str) -> list[list[Example]]:
        """The same steps for every layer."""
        examples = [example for _, _, example in self.examples(task, self.trained)]
        steps = StepPlan([len(example.input_ids) for example in examples], self.config)
        return [[examples[index] for index in batch] for step in steps for batch in step]

    def train(self, layer: int, batches: Sequence[list[Example]]) -> list[float]:
        """Train up and down of one layer; the loss of every step."""
        apply_selection(self.model, [layer])
        optimizer = MasterAdamW(trained_parameters(self.model).items())
        accumulator = Accumulator(self.model, self.head, optimizer, self.config)
        losses = []
        for step, batch in enumerate(batches):
            losses.append(float(accumulator.backward([batch], supervised_tokens(batch))))
            optimizer.clip(self.config.max_grad_norm)
            optimizer.step(learning_rate(step, len(batches), RATE, WARMUP))
        return losses

    def gradient_norms(self, batches: Sequence[list[Example]]) -> list[float]:
        """2-norm a layer of the gradient of up and down, summed over the first batches (GRASS, arXiv 2604.07808)."""
        chosen = apply_selection(self.model, range(self.num_layers))
        for batch in batches[:GRADIENT_BATCHES]:
            sum_loss(self.model, self.head, batch, packing=True).backward()
        squares = [0.0] * self.num_layers
        for entry in chosen:
            assert entry.parameter.grad is not None
            squares[entry.layer] += float(entry.parameter.grad.float().square().sum())
            entry.parameter.grad = None
        self.model.requires_grad_(False)
        return [square**0.5 for square in squares]


def measure(study: Study, tasks: Sequence[str]) -> Iterable[None]:
    """Everything that is not yet in the folder, a layer at a time."""
    study.probe()
    study.replies()  # before attention is switched to that of packed batches, with which nothing is generated
    order = spread(study.num_layers)
    todo = [(task, layer) for task in tasks for layer in order if not _file(study, task, layer).exists()]
    if not todo:
        return
    cache = PrefixCache(study.model)
    batches = {task: study.batches(task) for task in {task for task, _ in todo}}
    with packed_attention(study.model):
        with cache.recording():
            base = study.losses()
            with torch.no_grad():
                for batch in (batch for task in batches.values() for batch in task):
                    sum_loss(study.model, study.head, batch, packing=True)
        for task in batches:
            if not (path := study.work / f"base-{task}.json").exists():
                write_json(path, {"losses": base, "gradient_norm": study.gradient_norms(batches[task])})
        for task, layer in progress_bar(todo, desc="layers", unit="layer"):
            before = {entry.name: entry.parameter.detach().clone() for entry in apply_selection(study.model, [layer])}
            with cache.above(layer):
                steps = study.train(layer, batches[task])
                after = study.losses()
            with torch.no_grad():
                for name, weight in before.items():
                    study.model.get_parameter(name).copy_(weight)
            study.model.requires_grad_(False)
            write_json(_file(study, task, layer), {"losses": after, "steps": steps})
            yield


def spread(number: int) -> list[int]:
    """0 to number - 1, every eighth first, then those halfway between: an early stop has some of everywhere."""
    return list(dict.fromkeys(layer for step in (8, 4, 2, 1) for layer in range(0, number, step)))


def _file(study: Study, task: str, layer: int) -> Path:
    return study.work / f"{task}-{layer:02}.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_gain", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="as in slamkern --model")
    parser.add_argument("--pairs", type=Path, required=True, help="question pairs of de, es, sw and zh with English")
    parser.add_argument("--work", type=Path, required=True, help="folder for what was measured; resumes")
    parser.add_argument("--name", help="of the model in the results (default: --model)")
    parser.add_argument("--prompt", default="chat", help="chat (default), alpaca or another of slamkern's")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tasks", default="translate,reply", help="what to train on, in this order")
    parser.add_argument("--results", type=Path, default=layer_scores.FOLDER, help="folder of the result files")
    options = parser.parse_args(argv)
    study = Study(options.model, options.pairs, options.work, options.prompt, options.dtype)
    name = options.name or options.model
    settings = {
        "model": name, "dtype": options.dtype, "prompt": study.prompt.name, "languages": list(LANGUAGES),
        "probed_questions": PROBED, "steps": STEPS, "tokens_per_step": TOKENS, "learning_rate": RATE,
        "held_out_questions": HELD_OUT,
    }  # fmt: skip
    for _ in measure(study, options.tasks.split(",")):
        layer_scores.write(study.work, study.model, settings, options.results)
    path = layer_scores.write(study.work, study.model, settings, options.results)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
