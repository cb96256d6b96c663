"""The shapes that are measured: hidden size, neurons and attention heads of published models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One layer: ``hidden`` inputs and outputs, ``neurons`` of its gated FFN, heads of queries and of keys."""

    name: str
    hidden: int
    neurons: int
    heads: int
    key_heads: int

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads


SHAPES = (
    Shape("Llama-2-7B", 4096, 11008, 32, 32),
    Shape("Llama-3-8B", 4096, 14336, 32, 8),
    Shape("Llama-2-13B", 5120, 13824, 40, 40),
    Shape("Qwen2.5-0.5B", 896, 4864, 14, 2),
    Shape("SmolLM2-135M", 576, 1536, 9, 3),
)
# For dry runs: every line of a stage runs, no number means anything.
TINY = Shape("tiny", 32, 48, 4, 2)
