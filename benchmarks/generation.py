"""Greedy answers: rows that leave and enter, against batches that wait for their longest, against one by one.

    python -m benchmarks.generation --model SPEC [--data FOLDER] [--questions N] [--new-tokens N]
                                   [--repeats N] [--dtypes A,B] [--decode-threads N]

The questions are MSVAMP's (a quarter each of English, German, Swahili and Thai), put through the chat template where
the tokenizer has one. Providers: ``slamkern`` with 16 and 48 rows, ``generate`` of transformers with batches of 16
sorted by length, and the same with one question at a time (on fewer questions: it is slow). They take turns, and the
median of the repeats counts. A rate counts the new tokens that belong to answers, up to their end. On a processor the
speedup is one of processor time with ``--decode-threads`` threads (default 1: threads that wait for each other spin),
which others on the machine disturb least; on a GPU, of time. ``differ`` counts texts unlike those of ``generate``.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.data.prompts import encode_prompts, get_prompt
from slamkern.data.tasks import load_task
from slamkern.evaluation.generation import end_tokens, generate
from slamkern.modules.eval_mode import eval_mode
from slamkern.pipeline.loading import load_model

LANGUAGES = ("en", "de", "sw", "th")
# One question at a time is slow: every eighth question gives its rate.
ALONE = 8
COLUMNS = (
    "provider",
    "dtype",
    "rows",
    "answers",
    "tokens",
    "seconds",
    "processor_seconds",
    "tokens/s",
    "tokens/processor s",
    "x generate 16",
    "x generate 1",
    "differ",
)


@dataclass(frozen=True)
class Measured:
    """What a provider took and said."""

    seconds: float
    processor_seconds: float
    tokens: int
    texts: dict[int, str]


def transformers_answers(model: Any, tokenizer: Any, prompts: Sequence[str], batch: int, limit: int) -> dict[int, str]:
    """Answers of ``generate`` with left-padded batches, longest prompts first: what everybody would write."""
    ids = encode_prompts(list(prompts), tokenizer)
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    answers: dict[int, str] = {}
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        padded = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        with eval_mode(model):
            output = model.generate(
                **padded, do_sample=False, max_new_tokens=limit, eos_token_id=end_tokens(model, tokenizer)
            )
        new = output[:, padded["input_ids"].shape[1] :]
        answers |= dict(zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
    return answers


def questions(data: str | None, count: int) -> list[tuple[str, str]]:
    """(question, language), languages in turn; without data, problems of the embedded corpus."""
    task, languages = ("corpus", ("en", "de", "sw", "zh")) if data is None else ("msvamp", LANGUAGES)
    rows = load_task(task, languages, data, -(-count // len(languages)))
    columns = [[row for row in rows if row.language == code] for code in languages]
    return [(row.question, row.language) for turn in zip(*columns, strict=True) for row in turn][:count]


def measure(providers: dict[str, Callable[[], dict[int, str]]], tokenizer: Any, repeats: int) -> dict[str, "Measured"]:
    """Median seconds of time and of the processor, new tokens and texts of each provider; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    processor: dict[str, list[float]] = {name: [] for name in providers}
    texts: dict[str, dict[int, str]] = {}
    for _, (name, provider) in itertools.product(range(repeats), providers.items()):
        started, used = time.perf_counter(), time.process_time()
        texts[name] = provider()
        seconds[name].append(time.perf_counter() - started)
        processor[name].append(time.process_time() - used)
        print(f"{name}: {seconds[name][-1]:.1f} s, of the processor {processor[name][-1]:.1f} s", flush=True)
    tokens = {
        # One more than the text: the end-of-sequence token is generated too.
        name: sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in answers.values())
        for name, answers in texts.items()
    }
    return {
        name: Measured(statistics.median(seconds[name]), statistics.median(processor[name]), tokens[name], texts[name])
        for name in providers
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--decode-threads", type=int, default=1)
    own, rest = parser.parse_known_args(argv)
    # Names instead of paths: where model and data lie tells nobody else anything.
    chosen = f"--model {Path(own.model).name} --questions {own.questions} --new-tokens {own.new_tokens}"
    chosen += f" --data {Path(own.data).name}" if own.data else ""
    stage = Stage("generation", __doc__.splitlines()[0], rest, command=f"generation {chosen} --repeats {own.repeats}")
    if stage.dry:
        own.questions, own.new_tokens = 6, 4
    limit = own.new_tokens
    for dtype in own.dtypes.split(","):
        model, tokenizer = load_model(own.model, dtype=dtype, device=str(stage.device))
        prompt = get_prompt("chat" if getattr(tokenizer, "chat_template", None) else "alpaca", tokenizer)
        prompts = [prompt.question(*row) for row in questions(own.data, own.questions)]

        def ours(rows: int, model: Any = model, tokenizer: Any = tokenizer, prompts: Any = prompts) -> dict[int, str]:
            texts = generate(model, tokenizer, prompts, max_new_tokens=limit, batch_size=rows)
            return {index: text for index, text, _ in texts}

        def theirs(
            batch: int, step: int = 1, model: Any = model, tokenizer: Any = tokenizer, prompts: Any = prompts
        ) -> dict[int, str]:
            return transformers_answers(model, tokenizer, prompts[::step], batch, limit)

        providers: dict[str, Callable[[], dict[int, str]]] = {
            "slamkern 48": partial(ours, 48),
            "slamkern 16": partial(ours, 16),
        }
        if dtype == "float32":
            providers |= {"generate 16": partial(theirs, 16), "generate 1": partial(theirs, 1, ALONE)}
        threads = torch.get_num_threads()
        torch.set_num_threads(own.decode_threads)
        found = measure(providers, tokenizer, own.repeats)
        stage.rows += rows_of(dtype, Path(own.model).name, found, stage.device.type == "cpu", stage.rows)
        torch.set_num_threads(threads)  # the result file is that of the machine
        stage.save()
    show(f"greedy answers on {stage.device}", stage.rows, COLUMNS)
    return 0


def rows_of(dtype: str, model: str, found: dict[str, Measured], on_cpu: bool, before: Sequence[Row]) -> list[Row]:
    """A row a provider; ``before`` are the rows of dtypes measured earlier, float32 first."""
    kind = "tokens/processor s" if on_cpu else "tokens/s"
    reference = found.get("generate 16")
    rows: list[Row] = []
    for name, measured in found.items():
        provider, batch = name.split()
        rows.append(
            {
                "provider": provider,
                "model": model,
                "dtype": dtype,
                "rows": int(batch),
                "answers": len(measured.texts),
                "tokens": measured.tokens,
                "seconds": round(measured.seconds, 2),
                "processor_seconds": round(measured.processor_seconds, 2),
                "tokens/s": measured.tokens / measured.seconds,
                "tokens/processor s": measured.tokens / measured.processor_seconds,
                "threads": torch.get_num_threads(),
            }
        )
        if reference is not None and name != "generate 1":
            rows[-1]["differ"] = sum(reference.texts[key] != text for key, text in measured.texts.items())
    baselines = {(row["provider"], row["rows"]): row[kind] for row in (*before, *rows) if row["dtype"] == "float32"}
    for row in rows:
        for size in (16, 1):
            if baseline := baselines.get(("generate", size)):
                row[f"x generate {size}"] = row[kind] / baseline
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
