"""Models of strangers that mean harm: what is done to a good folder or GGUF file, and a judge with limits.

Each case is loaded as the package loads a model, asked one question through its chat template, and run once, in a child
process with a limit of time and of memory.
"""

import json
import os
import pickle
import resource
import select
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slamkern.data.prompts import get_prompt
from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import load_model

SECONDS, MEGABYTES = 40, 1500
Change = Callable[[Path], Any]


def config(**values: Any) -> Change:
    """Other values in config.json; text that is no JSON value (NaN, 1e999) is written as it is."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        text = json.dumps({**json.loads(path.read_text()), **values})
        path.write_text(text.replace('"<', "").replace('>"', ""))

    return change


def template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil(folder / "touched")}))


def own_code(folder: Path) -> None:
    config(auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil"), model_type="evil")(folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'touched')!r}, 'w')\n")


def tokenizer_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "E"}
    path.write_text(json.dumps(values))
    (folder / "evil.py").write_text(f"open({str(folder / 'touched')!r}, 'w')\n")


def header(size: int, content: bytes = b"{}") -> Change:
    """A safetensors file that says its header has ``size`` bytes."""
    padded = struct.pack("<Q", size) + content + bytes(200_000)  # as large as the weights should be
    return lambda folder: (folder / "model.safetensors").write_bytes(padded)


def huge_tensor(folder: Path) -> None:
    entry = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    text = json.dumps(entry).encode()
    header(len(text), text)(folder)


FOLDERS: dict[str, Change] = {
    "pickled weights": pickled,
    "code of a model": own_code,
    "code of a tokenizer": tokenizer_code,
    "code for attention": config(attn_implementation="stranger/attention"),
    "link of the configuration": link("config.json", "/etc/passwd"),
    "link of the template": link("chat_template.jinja", "/etc/passwd"),
    "link of the weights to a device": link("model.safetensors", "/dev/zero"),
    "link of the tokenizer to a device": link("tokenizer.json", "/dev/zero"),
    "NaN in the norm": config(rms_norm_eps="<NaN>"),
    "infinity in the norm": config(rms_norm_eps="<1e999>"),
    "a context of 10^18": config(max_position_embeddings=10**18),
    "a vocabulary of 10^8": config(vocab_size=10**8),
    "a vocabulary of 10^12": config(vocab_size=10**12),
    "a width of 2^40": config(hidden_size=2**40),
    "no width": config(hidden_size=0),
    "-1 layers": config(num_hidden_layers=-1),
    "10^9 layers": config(num_hidden_layers=10**9),
    "1e999 layers": config(num_hidden_layers="<1e999>"),
    "no heads": config(num_attention_heads=0),
    "a type that is a path": config(model_type="../../etc"),
    "a data type that is code": config(dtype="os.system", torch_dtype="os.system"),
    "quantization of another world": config(quantization_config={"quant_method": "evil", "bits": 10**9}),
    "nesting": text("config.json", "[" * 100_000),
    "a number of 10,000 digits": text("config.json", '{"model_type": "llama", "vocab_size": ' + "9" * 10_000 + "}"),
    "a tokenizer of nothing": text("tokenizer.json", "{}"),
    "an expression that backtracks": text("tokenizer.json", json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})),
    "a header of 2^63 bytes": header(2**63),
    "a header of 10^8 bytes": header(10**8),
    "a tensor of 2^60 values": huge_tensor,
    "a loop without end": template("{% for i in range(10**12) %}x{% endfor %}"),
    "nested loops": template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    "a text of 10 GB": template("{{ 'x' * 10**10 }}"),
    "a power": template("{{ 9 ** 9 ** 9 }}"),
    "attributes": template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
    "attributes by format": template("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}"),
    "an import": template("{% include '/etc/passwd' %}"),
    "recursion": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "a wide format": template("{{ '%0999999999d' | format(1) }}"),
}  # fmt: skip


def field(offset: int, format: str, value: int) -> Callable[[bytes], bytes]:
    """Another number in the header of a GGUF file: magic, version (4), tensors (8), keys (16)."""
    return lambda data: data[:offset] + struct.pack(format, value) + data[offset + struct.calcsize(format) :]


def key(name: str, value: int) -> Callable[[bytes], bytes]:
    """Another value of a uint32 of a GGUF file."""

    def change(data: bytes) -> bytes:
        place = data.index(f"llama.{name}".encode()) + len(f"llama.{name}") + 4
        return data[:place] + struct.pack("<I", value) + data[place + 4 :]

    return change


def length(name: str, value: int) -> Callable[[bytes], bytes]:
    """Another length of an array of a GGUF file."""

    def change(data: bytes) -> bytes:
        place = data.index(name.encode()) + len(name) + 8
        return data[:place] + struct.pack("<Q", value) + data[place + 8 :]

    return change


GGUF: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "another magic": lambda data: b"GGML" + data[4:],
    "version 99": field(4, "<I", 99),
    "version 2^31": field(4, "<I", 2**31),
    "2^62 tensors": field(8, "<Q", 2**62),
    "10^7 tensors": field(8, "<Q", 10**7),
    "2^62 keys": field(16, "<Q", 2**62),
    "no keys": field(16, "<Q", 0),
    "a key of 2^62 bytes": field(24, "<Q", 2**62),
    "a context of 2^32": key("context_length", 2**32 - 1),
    "2^32 layers": key("block_count", 2**32 - 1),
    "no layers": key("block_count", 0),
    "a width of 2^32": key("embedding_length", 2**32 - 1),
    "no heads": key("attention.head_count", 0),
    "2^62 tokens": length("tokenizer.ggml.tokens", 2**62),
    "10^9 tokens": length("tokenizer.ggml.tokens", 10**9),
    **{f"cut at {part} %": lambda data, part=part: data[: len(data) * part // 100] for part in (5, 25, 50, 75, 95)},
}


def judged(model: Path) -> dict[str, Any]:
    """What becomes of a model: ``refused`` in one line, ``harmless``, or what went wrong; seconds and megabytes."""
    reader, writer = os.pipe()
    started = time.monotonic()
    if (child := os.fork()) == 0:
        os.close(reader)
        _use(model, writer)
    os.close(writer)
    answer = b""
    while True:
        left = started + SECONDS - time.monotonic()
        ready, _, _ = select.select([reader], [], [], max(0.0, left))
        if not ready or not (part := os.read(reader, 65536)):
            break
        answer += part
    os.close(reader)
    seconds = time.monotonic() - started
    if not answer:
        os.kill(child, signal.SIGKILL)
    used = os.wait4(child, 0)[2].ru_maxrss / 1024 - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outcome = json.loads(answer) if answer else {"outcome": "too long" if seconds >= SECONDS else "died", "message": ""}
    if used > MEGABYTES:
        outcome["outcome"] = "too large"
    touched = (model if model.is_dir() else model.parent) / "touched"
    if touched.exists():
        outcome["outcome"] = "code was run"
    return {**outcome, "seconds": round(seconds, 1), "megabytes": max(0, round(used))}


def _use(model: Path, writer: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        try:
            loaded, tokenizer = load_model(str(model), device="cpu")
            if tokenizer.chat_template:
                get_prompt("chat", tokenizer)
            with torch.no_grad():
                loaded(input_ids=torch.tensor([[1, 2, 3]]))
            result = ("harmless", "")
        except SlamkernError as error:
            result = ("refused" if "\n" not in str(error) else "several lines", str(error)[:200])
        except BaseException as error:
            result = ("traceback", repr(error)[:200])
        os.write(writer, json.dumps(dict(zip(("outcome", "message"), result, strict=True))).encode())
    finally:
        os._exit(0)
