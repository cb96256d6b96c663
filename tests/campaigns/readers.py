"""Every reader of bytes that somebody else may have made: one function each, and good examples to change.

Files that bear hashes are given right ones, or nothing behind the hash would ever be read. A reader gets the text of
one file, or of several with ``CUT`` between them; safetensors files are described in JSON (see `tensors`).
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns import model_readers as models
from campaigns import weight_readers as weights
from campaigns.examples import CONFIG, PAIRS, PROBLEMS, PUBLISHED, RESULTS, SAMPLE, TEMPLATE
from campaigns.reader_files import CUT, checked, described, parts, put, tensors

from slamkern.data.pairs import load_pairs, split_pairs
from slamkern.data.prompts import get_prompt
from slamkern.data.tasks import load_task
from slamkern.evaluation.compare import compare
from slamkern.evaluation.predictions import PREDICTIONS_FILE, SETTINGS_FILE
from slamkern.evaluation.scoring import format_table, score
from slamkern.pipeline.config import load_config
from slamkern.pipeline.verify import verify
from slamkern.reading import parse_json, parse_yaml
from slamkern.report.html import write_report

RUN_FILES = (
    "stats.safetensors", "selection.json", "run.json", "metrics.json", "evaluation/after.json",
    "evaluation/after/evaluation.json", "evaluation/after/predictions.jsonl", "train/run.json", "train/metrics.jsonl",
    "train/delta.safetensors", "train/checkpoint-3/training-state.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """``read(data, folder)`` may only raise SlamkernError of one line; ``examples(run)`` pass it.

    folder: what earlier calls left; a copy of the finished run in ``run`` at first.
    """

    read: Callable[[bytes, Path], Any]
    examples: Callable[[Path], list[bytes]]


# --- Configurations and data ---


def config(data: bytes, folder: Path) -> None:
    file, overrides = parts(data, 2)
    text = overrides.decode("utf-8", "surrogateescape")
    load_config(put(folder / "run.yaml", file), [line for line in text.split("\n") if line])


def pairs(data: bytes, folder: Path) -> None:
    found = load_pairs(put(folder / "pairs.jsonl", data), content="both")
    split_pairs(found, 0, 0)
    get_prompt("alpaca").translation(found[0])


def parallel(data: bytes, folder: Path) -> None:
    shutil.rmtree(folder / "data", ignore_errors=True)
    for name, text in zip(("question", "answer"), (data.split(CUT)[:2], data.split(CUT)[2:4]), strict=True):
        for code, lines in zip(("de", "en"), text, strict=False):
            put(folder / "data" / name / "de-en" / f"train.{code}", lines)
    load_pairs(folder / "data", content="both")


def tasks(data: bytes, folder: Path) -> None:
    if b"{" in data:
        load_task("msvamp", ["de"], put(folder / "test_German.json", data))
    else:
        load_task("mgsm", None, put(folder / "mgsm_de.tsv", data))


# --- What an evaluation writes, and that of lm-evaluation-harness ---


def evaluation(data: bytes, folder: Path) -> None:
    record, lines = parts(data, 2)
    digest = {"predictions_sha256": hashlib.sha256(lines).hexdigest()}
    path = put(folder / "evaluation" / PREDICTIONS_FILE, lines)
    checked(path.with_name(SETTINGS_FILE), record, **(digest if b"predictions_sha256" in record else {}))
    format_table(score(path))
    compare(path.parent, path.parent, resamples=10)


def samples(data: bytes, folder: Path) -> None:
    lines, results = parts(data, 2)
    date = "2026-11-24T23-24-39.611301"
    path = put(folder / "samples" / f"samples_mgsm_direct_de_{date}.jsonl", lines)
    put(path.with_name(f"results_{date}.json"), results)
    compare(path, path, resamples=10)


# --- A whole run ---


def report(data: bytes, folder: Path) -> None:
    checked(folder / "metrics.json", data)
    write_report(folder)


def whole_run(data: bytes, folder: Path) -> None:
    """The first line chooses the file that is replaced by the rest; afterwards it is put back."""
    first, _, text = data.partition(b"\n")
    name = RUN_FILES[sum(first) % len(RUN_FILES)]
    path = folder / name
    kept = path.read_bytes()
    try:
        make = {".json": checked, ".jsonl": put, ".safetensors": tensors}[path.suffix]
        make(path, text)
        verify(folder)
    finally:
        path.write_bytes(kept)


def _run_examples(run: Path) -> list[bytes]:
    texts = [described(run / name) if name.endswith("safetensors") else (run / name).read_bytes() for name in RUN_FILES]
    return [bytes([number + len(RUN_FILES)]) + b"\n" + text for number, text in enumerate(texts)]


def _texts(*names: str) -> Callable[[Path], list[bytes]]:
    """Files of the finished run as one example."""
    return lambda run: [CUT.join((run / name).read_bytes() for name in names)]


def _given(*texts: str) -> Callable[[Path], list[bytes]]:
    return lambda run: [text.replace("|", CUT.decode()).encode() for text in texts]


READERS: dict[str, Reader] = {
    "json": Reader(lambda data, _: parse_json(data, "here"), _texts("metrics.json")),
    "yaml": Reader(
        lambda data, _: parse_yaml(data.decode("utf-8", "replace"), "here"), _given(CONFIG, "- 1\n- [a, {b: c}]\n")
    ),
    "config": Reader(config, _given(CONFIG + "|train.max_steps=3\nselect.k=2\ndata.languages=[de]")),
    "pairs": Reader(pairs, _given(PAIRS, f"[{PAIRS.strip().replace(chr(10), ',')}]", PROBLEMS, PUBLISHED)),
    "parallel": Reader(parallel, _given('Hallo\nDrei|Hello\nThree|"Es ist\\n3"\nVier|It is 3\n"Four"')),
    "tasks": Reader(tasks, _given("Wie viele?\t18\nUnd?\t1,000\n", '{"m_query": "Wie viele?", "response": "18"}\n')),
    "evaluation": Reader(evaluation, _texts("evaluation/after/evaluation.json", "evaluation/after/predictions.jsonl")),
    "samples": Reader(samples, _given(f"{SAMPLE}|{RESULTS}")),
    "safetensors": Reader(weights.raw_tensors, _texts("train/delta.safetensors")),
    "stats": Reader(weights.stats, weights.stats_examples),
    "selection": Reader(weights.selection, _texts("selection.json")),
    "mask": Reader(weights.mask, weights.mask_example),
    "delta": Reader(weights.delta, lambda run: [weights.checkpoint_examples(run)[0].split(CUT)[1]]),
    "checkpoint": Reader(weights.checkpoint, weights.checkpoint_examples),
    "report": Reader(report, _texts("metrics.json")),
    "whole_run": Reader(whole_run, _run_examples),
    "chat_template": Reader(models.chat_template, _given(TEMPLATE)),
    "prompt_file": Reader(models.prompt_file, _given("Q: {instruction}\nA in {language}:")),
    "model_folder": Reader(models.model_folder, models.model_examples),
    "gguf": Reader(models.gguf, lambda run: [models.gguf_example()]),
}
