"""Data past memory: millions of pairs from a file to the batches of an epoch, with the memory and the time it takes.

The pairs are made up; their lengths are those of translated GSM8K questions under a prompt (log-normal, 180 tokens on
average). Measured is resident memory at its highest in each phase, mapped files included, and the
processor time of making a micro-batch against that of training on one: of SmolLM2-135M here, and of Llama-2-7B
as computed for an H100 at 40 % of its peak.
"""

import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.bench.workload import shape_builder, shape_config
from slamkern.data.arrow_table import IN_MEMORY
from slamkern.data.packing import Example, collate
from slamkern.data.pairs import load_pairs, split_pairs
from slamkern.data.prompts import get_prompt
from slamkern.data.token_table import TokenTable
from slamkern.data.tokenization import tokenize_pairs
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import patch_model
from slamkern.pipeline.plan import TERAFLOPS, UTILIZATION
from slamkern.selection.trainable import apply_selection
from slamkern.training.batches import StepPlan
from slamkern.training.config import TrainConfig
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.step_cost import Dimensions

WORDS = 30_000
LANGUAGES = ("bn", "de", "es", "fr", "ja", "ru", "sw", "th", "zh")
TOKENS = 4096  # of a micro-batch
COLUMNS = ("phase", "pairs", "seconds", "rows_per_second", "peak_rss_gb", "ms", "share")


def tokenizer() -> Any:
    """A word is a token, so that lengths are what they are meant to be."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"{word:x}": 3 + word for word in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write_pairs(path: Path, count: int) -> None:
    """JSON lines; the prompt brings 40 words more."""
    draw = random.Random(0)
    words = [f"{word:x}" for word in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            length = min(480, max(20, int(draw.lognormvariate(4.1, 0.45))))  # 67 words on average
            first = draw.randrange(WORDS - 2 * length)
            source, target = (" ".join(words[at : at + length]) for at in (first, first + length))
            code = LANGUAGES[index % len(LANGUAGES)]
            pair = {"source": source, "target": f"{index:x} {target}", "source_language": code}
            file.write(json.dumps(pair) + "\n")


def peak_rss() -> int:
    """Bytes resident at most since the last :func:`forget_peak`, anonymous memory and mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def phase(stage: Stage, name: str, count: int) -> Iterator[Row]:
    """A row with the time and the memory of the block."""
    forget_peak()
    row: Row = {"phase": name, "pairs": count}
    started = time.perf_counter()
    yield row
    seconds = time.perf_counter() - started
    row |= {"seconds": seconds, "rows_per_second": count / seconds, "peak_rss_gb": peak_rss() / 1e9}
    stage.rows.append(row)
    stage.save()
    print(f"{name}: {seconds:.1f} s, {row['peak_rss_gb']:.2f} GB")


def measure(stage: Stage, folder: Path, count: int) -> TokenTable:
    """Everything from the file to the last batch of an epoch; the batches of ``TOKENS`` tokens are timed one by one."""
    path, words, prompt = folder / "pairs.jsonl", tokenizer(), get_prompt("alpaca")
    write_pairs(path, count)
    with phase(stage, "read pairs, hold some out", count):
        pairs, _ = split_pairs(load_pairs(path), 20, seed=0)
    with phase(stage, "tokenize", count):
        tokenize_pairs(pairs, words, prompt)
    with phase(stage, "open again", count):
        examples = tokenize_pairs(pairs, words, prompt)
    del pairs
    with phase(stage, "plan an epoch", count):
        plan = StepPlan(examples.lengths.tolist(), TrainConfig(num_train_epochs=1, tokens_per_batch=TOKENS))
    made, times = len(plan) if stage.dry else 2000, []
    with phase(stage, "read an epoch in its order", count) as row:
        for number, step in enumerate(plan):
            started = time.process_time()  # one thread and no waiting: not the time that others take on this machine
            batch = [examples[index] for index in step[0]]
            if number < made:
                collate(batch)
                times.append(time.process_time() - started)
        row |= {"fill": int(examples.lengths.sum()) / (TOKENS * len(plan))}
    milliseconds = 1000 * sorted(times)[len(times) // 2]
    stage.rows.append({"phase": "make a micro-batch", "ms": milliseconds, "tokens": TOKENS})
    stage.save()
    return examples


def against_steps(stage: Stage, examples: TokenTable) -> None:
    """What making a micro-batch is of a step on it."""
    made = next(row["ms"] for row in stage.rows if row["phase"] == "make a micro-batch")
    seven = Dimensions.of(shape_config("Llama-2-7B"))
    lengths = [180] * (TOKENS // 180)
    computed = seven.minimum_flops(lengths, TOKENS // 3, range(6)) / (TERAFLOPS * 1e12 * UTILIZATION)
    name = f"of a step of Llama-2-7B, computed for {TERAFLOPS:.0f} TFLOP/s at {UTILIZATION:.0%}"
    stage.rows.append({"phase": name, "ms": 1000 * computed, "share": made / (1000 * computed)})

    shape = "tiny" if stage.dry else "SmolLM2-135M"
    changes = {"vocab_size": WORDS + 3} if stage.dry else {}
    model = patch_model(shape_builder(shape, torch.device("cpu"), torch.float32, **changes)())
    apply_selection(model, range(2 if stage.dry else 6))
    head, taken, times, tokens = read_head(model), 0, [], 512 if stage.dry else TOKENS
    with packed_attention(model):
        for _ in range(3):
            batch: list[Example] = []
            while sum(len(example.input_ids) for example in batch) + len(examples[taken].input_ids) <= tokens:
                batch.append(examples[taken])
                taken += 1
            started = time.process_time()
            packed_loss(model, collate(batch), head=head).backward()
            times.append(time.process_time() - started)
    trained = 1000 * sorted(times)[1]
    name = f"of forward and backward of {shape} on this machine"
    stage.rows.append({"phase": name, "ms": trained, "share": made / trained})
    stage.save()


def main(argv: list[str] | None = None) -> int:
    stage = Stage("streaming", __doc__.splitlines()[0], argv)
    count = 3_000 if stage.dry else 2_000_000
    # Not in memory, as /tmp may be.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".streaming-") as folder:
        in_memory = 1000 if stage.dry else IN_MEMORY
        with (
            mock.patch("datasets.config.HF_DATASETS_CACHE", folder),
            mock.patch("slamkern.data.arrow_table.IN_MEMORY", in_memory),
            mock.patch("slamkern.data.tokenization.IN_MEMORY", in_memory),
        ):
            examples = measure(stage, Path(folder), count)
        against_steps(stage, examples)
    show(f"{count:,} pairs, micro-batches of {TOKENS} tokens", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
