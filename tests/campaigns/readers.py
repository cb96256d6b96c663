"""Every reader of bytes that somebody else may have made: one function each, and good examples to change.

Files that bear hashes are given right ones, or nothing behind the hash would ever be read. A reader gets the text of
one file, or of several with ``CUT`` between them; safetensors files are described in JSON (see `tensors`).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from campaigns.examples import CONFIG, PAIRS, PROBLEMS, PUBLISHED, RESULTS, SAMPLE, TEMPLATE
from campaigns.reader_files import CUT, checked, described, parts, put, tensors
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.data.pairs import load_pairs, split_pairs
from slamkern.data.prompts import get_prompt
from slamkern.data.tasks import load_task
from slamkern.errors import SlamkernError
from slamkern.evaluation.compare import compare
from slamkern.evaluation.predictions import PREDICTIONS_FILE, SETTINGS_FILE
from slamkern.evaluation.scoring import format_table, score
from slamkern.files import load_tensors
from slamkern.pipeline.config import load_config
from slamkern.pipeline.loading import load_tokenizer
from slamkern.pipeline.verify import verify
from slamkern.probe.stats import ActivationStats
from slamkern.reading import parse_json, parse_yaml
from slamkern.report.html import write_report
from slamkern.selection.exchange import read_lape_mask
from slamkern.selection.layers import LayerSelection, select_layers
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import restore_checkpoint, save_checkpoint
from slamkern.training.delta import read_change, revert_layers
from slamkern.training.frozen import frozen_digests, trained_parts
from slamkern.training.optimizer import MasterAdamW

MODEL_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")
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


# --- Statistics, selections, weights ---


def stats(data: bytes, folder: Path) -> None:
    found = ActivationStats.load(tensors(folder / "stats.safetensors", data))
    found.merge(found)
    select_layers(found, 1, bootstrap=2)


def selection(data: bytes, folder: Path) -> None:
    found = LayerSelection.load(checked(folder / "selection.json", data))
    apply_selection(tiny_model(), found)


def mask(data: bytes, folder: Path) -> None:
    read_lape_mask(put(folder / "mask", data), ["de"], mask_languages=["th", "de"])


@cache
def trained() -> tuple[Any, MasterAdamW, dict[str, str]]:
    model = tiny_model()
    apply_selection(model, LayerSelection((0,)))
    optimizer = MasterAdamW((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    return model, optimizer, frozen_digests(model, trained_parts(model))


def checkpoint(data: bytes, folder: Path) -> None:
    state, delta = parts(data, 2)
    model, optimizer, frozen = trained()
    tensors(folder / "checkpoint-3" / "training-state.safetensors", state)
    tensors(folder / "checkpoint-3" / "delta.safetensors", delta)
    with torch.random.fork_rng():
        restore_checkpoint(folder / "checkpoint-3", model, optimizer, fingerprint="run", frozen=frozen)


def _checkpoint_examples(run: Path) -> list[bytes]:
    model, optimizer, frozen = trained()
    made = save_checkpoint(
        model, optimizer, run / "made", step=3, fingerprint="run", selection=LayerSelection((0,)), frozen=frozen
    )
    return [described(made / "training-state.safetensors") + CUT + described(made / "delta.safetensors")]


def delta(data: bytes, folder: Path) -> None:
    path = tensors(folder / "delta" / "delta.safetensors", data)
    shutil.rmtree(folder / "out", ignore_errors=True)
    with suppress(SlamkernError):
        revert_layers(path.parent, [0], folder / "out")
    read_change(trained()[0], [(path.parent, 1.0)])


# --- Models of strangers ---


def gguf(data: bytes, folder: Path) -> None:
    load_tokenizer(str(put(folder / "model.gguf", data)))


def gguf_example() -> bytes:
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "a.gguf", "llama")
        for name, value in (("block_count", 2), ("context_length", 64), ("embedding_length", 32),
                            ("feed_forward_length", 64), ("head_count", 4), ("head_count_kv", 2)):  # fmt: skip
            getattr(writer, f"add_{name}")(value)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([*(chr(33 + number) for number in range(88)), "ab", "cd"])
        writer.add_token_types([1] * 90)
        writer.add_token_merges(["a b", "c d"])
        writer.add_eos_token_id(1)
        writer.add_bos_token_id(2)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return (Path(folder) / "a.gguf").read_bytes()


def model_folder(data: bytes, folder: Path) -> None:
    for name, text in zip(MODEL_FILES, parts(data, len(MODEL_FILES)), strict=True):
        put(folder / "model" / name, text)
    load_tokenizer(str(folder / "model"))


def _model_examples(run: Path) -> list[bytes]:
    return [CUT.join((run.parent / "model" / name).read_bytes() for name in MODEL_FILES)]


@cache
def _speaker() -> Any:
    return tiny_tokenizer()


def chat_template(data: bytes, folder: Path) -> None:
    tokenizer = _speaker()
    tokenizer.chat_template = data.decode("utf-8", "replace")
    get_prompt("chat", tokenizer)


def prompt_file(data: bytes, folder: Path) -> None:
    get_prompt(str(put(folder / "prompt.txt", data))).question("Wie viele?", "de")


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


def _stats_examples(run: Path) -> list[bytes]:
    """Without groups of questions, and with one group that is the whole."""
    values = json.loads(described(run / "stats.safetensors"))
    plain = {name: entry for name, entry in values["tensors"].items() if not name.startswith("group_")}
    group = {
        f"group_{name}": [dtype, [1, *plain[name][1]], plain[name][2]]
        for name, dtype in (("count", "int64"), ("mean", "float32"), ("active", "int32"))
    }
    return [json.dumps({**values, "tensors": tensors}).encode() for tensors in (plain, plain | group)]


def _mask_example(run: Path) -> list[bytes]:
    torch.save([[torch.tensor([3, 1]), torch.tensor([7])], [torch.tensor([1]), torch.tensor([2])]], run / "mask")
    return [(run / "mask").read_bytes()]


def _raw_tensors(data: bytes, folder: Path) -> None:
    load_tensors(put(folder / "raw.safetensors", data), "tensor")


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
    "safetensors": Reader(_raw_tensors, _texts("train/delta.safetensors")),
    "stats": Reader(stats, _stats_examples),
    "selection": Reader(selection, _texts("selection.json")),
    "mask": Reader(mask, _mask_example),
    "delta": Reader(delta, lambda run: [_checkpoint_examples(run)[0].split(CUT)[1]]),
    "checkpoint": Reader(checkpoint, _checkpoint_examples),
    "report": Reader(report, _texts("metrics.json")),
    "whole_run": Reader(whole_run, _run_examples),
    "chat_template": Reader(chat_template, _given(TEMPLATE)),
    "prompt_file": Reader(prompt_file, _given("Q: {instruction}\nA in {language}:")),
    "model_folder": Reader(model_folder, _model_examples),
    "gguf": Reader(gguf, lambda run: [gguf_example()]),
}
