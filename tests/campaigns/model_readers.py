"""Readers of what comes with a stranger's model for the campaigns, and good examples; see ``readers``."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from campaigns.reader_files import CUT, parts, put
from support.tiny_causal_lm import tiny_tokenizer

from slamkern.data.prompts import get_prompt
from slamkern.pipeline.loading import load_tokenizer

MODEL_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")


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


def model_examples(run: Path) -> list[bytes]:
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
