"""What the training profile runs on: models of published shapes, real translation pairs, and their micro-batches.

Every variant of a step gets the same examples; only how they are cut into micro-batches differs. Random weights of a
shape train as fast as real ones, and the loss of the first steps falls as it should.
"""

import copy
import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slamkern.data.packing import IGNORE, Example, pack_plan
from slamkern.data.pairs import load_pairs
from slamkern.data.prompts import get_prompt
from slamkern.data.tokenization import tokenize_pairs
from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import SMOLLM2_PACKAGE, load_model

# Llama of these sizes: (vocabulary, hidden, neurons, layers, heads, key-value heads, tied embeddings)
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "tiny": (512, 64, 160, 4, 4, 2, False),
    "SmolLM2-135M": (49152, 576, 1536, 30, 9, 3, True),
    "Llama-100M": (32000, 640, 1728, 12, 10, 10, False),
    "Llama-2-7B": (32000, 4096, 11008, 32, 32, 32, False),
    "Llama-3-8B": (128256, 4096, 14336, 32, 32, 8, False),
    "Qwen2.5-0.5B": (151936, 896, 4864, 24, 14, 2, True),
    "Llama-2-13B": (32000, 5120, 13824, 40, 40, 40, False),
    "Llama-2-70B": (32000, 8192, 28672, 80, 64, 8, False),
}
PAIRS = "gsm8k_questions"  # real translation pairs, where they are at hand
_CHECKOUT = Path(__file__).resolve().parents[2]
Builder = Callable[[], Any]


def shape_config(shape: str, **changes: Any) -> Any:
    """The transformers configuration of a shape; ``changes`` go into it."""
    if shape not in SHAPES:
        raise SlamkernError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    from transformers import LlamaConfig

    vocabulary, hidden, neurons, layers, heads, kv_heads, tied = SHAPES[shape]
    arguments = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": neurons,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }
    return LlamaConfig(**arguments | changes)


def shape_builder(shape: str, device: torch.device, dtype: torch.dtype, **changes: Any) -> Builder:
    """A function that makes the same random model each time; ``changes`` go into its configuration."""
    from transformers import AutoModelForCausalLM

    config = shape_config(shape, **changes)

    def build() -> Any:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="sdpa")

    return build


def checkpoint_builder(spec: str, device: torch.device, dtype: torch.dtype) -> tuple[Builder, Any]:
    """The same for a real checkpoint, loaded once into host memory; also its tokenizer."""
    model, tokenizer = load_model(spec, str(dtype).removeprefix("torch."), "cpu")
    return lambda: copy.deepcopy(model).to(device), tokenizer


class HalfBytes:
    """Stands in for a tokenizer where none is installed: every second byte of the text, which gives real raggedness."""

    name_or_path = "every second byte"
    eos_token_id = pad_token_id = 0

    def __call__(self, texts: str | Sequence[str], **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": list(texts.encode()[::2])}
        return {"input_ids": [list(text.encode()[::2]) for text in texts]}


def any_tokenizer(spec: str | None = None) -> Any:
    """The tokenizer of a folder or hub id; by default SmolLM2's where its package is installed, else ``HalfBytes``."""
    from transformers import AutoTokenizer

    if spec is not None:
        try:
            return AutoTokenizer.from_pretrained(spec, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SlamkernError(f"no tokenizer at {spec!r}: {str(error).splitlines()[0]}") from error
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if package is None or importlib.util.find_spec("gguf") is None:
        return HalfBytes()
    assert package.origin is not None
    folder = Path(package.origin).parent
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@dataclass(frozen=True)
class Workload:
    """``steps`` of examples; where the texts come from and who tokenized them."""

    steps: list[list[Example]]
    source: str
    tokenizer: str


def shared_data(name: str) -> Path | None:
    """The folder of data of this name, in the checkout or beside it; None where there is none."""
    places = (folder / "shared" / "data" / name for folder in (_CHECKOUT, _CHECKOUT.parent))
    return next((place for place in places if place.is_dir()), None)


def real_pairs(
    data: str | None, tokenizer: Any, vocabulary: int, *, steps: int, pairs: int, max_length: int = 1024, seed: int = 0
) -> Workload:
    """``steps`` times ``pairs`` random translation pairs of ``data`` (default: real ones if there, else the corpus).

    Ids beyond the vocabulary of a random model are folded into it: only lengths matter there.
    """
    where = data or str(shared_data(PAIRS) or "corpus:")
    available = list(load_pairs(where))
    if len(available) < steps * pairs:
        raise SlamkernError(f"{where} has {len(available)} pairs; {steps} steps of {pairs} need {steps * pairs}")
    random.Random(seed).shuffle(available)
    wanted = available[: steps * pairs + 64]  # a few more: some may be too long
    examples = tokenize_pairs(wanted, tokenizer, get_prompt("alpaca", tokenizer), max_length=max_length)
    if len(examples) < steps * pairs:
        raise SlamkernError(f"only {len(examples)} of {len(wanted)} pairs of {where} fit into {max_length} tokens")
    folded = [_fold(example, vocabulary) for example in examples]
    name = "embedded corpus" if where.startswith("corpus:") else Path(where).name
    cut = [folded[first : first + pairs] for first in range(0, steps * pairs, pairs)]
    return Workload(cut, name, Path(str(tokenizer.name_or_path)).name)


def even_lengths(length: int, tokens: int, vocabulary: int, *, steps: int, supervised: float = 0.36) -> Workload:
    """Random sequences of one length, as many as fit into ``tokens``; the last part of each is supervised."""
    generator = random.Random(length)
    prompt = length - max(1, round(supervised * length))

    def example() -> Example:
        ids = tuple(generator.randrange(vocabulary) for _ in range(length))
        return Example(ids, (*[IGNORE] * prompt, *ids[prompt:]))

    count = max(1, tokens // length)
    return Workload([[example() for _ in range(count)] for _ in range(steps)], f"{length} tokens each", "random ids")


def _fold(example: Example, vocabulary: int) -> Example:
    ids = tuple(token % vocabulary for token in example.input_ids)
    labels = tuple(label if label == IGNORE else label % vocabulary for label in example.labels)
    return Example(ids, labels)


def micro_batches(
    examples: Sequence[Example], layout: str, *, padded_batch_size: int, packed_tokens: int
) -> list[list[Example]]:
    """One step's examples cut up: ``padded`` in the order given, so many at a time; ``grouped`` by length, in eighths
    of the step but at most so many at a time; ``packed`` into rows of ``packed_tokens`` tokens.
    """
    if layout == "packed":
        plan = pack_plan([len(example.input_ids) for example in examples], packed_tokens, seed=0, epoch=0)
        return [[examples[index] for index in chosen] for chosen in plan]
    size = padded_batch_size
    if layout == "grouped":
        examples = sorted(examples, key=lambda example: len(example.input_ids))
        size = min(size, max(1, len(examples) // 8))
    return [list(examples[first : first + size]) for first in range(0, len(examples), size)]
