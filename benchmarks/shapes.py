"""The shapes that are measured: hidden size and neurons of published models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One layer: ``hidden`` inputs and outputs, ``neurons`` of its gated FFN."""

    name: str
    hidden: int
    neurons: int


SHAPES = (
    Shape("Llama-2-7B", 4096, 11008),
    Shape("Llama-3-8B", 4096, 14336),
    Shape("Llama-2-13B", 5120, 13824),
    Shape("Qwen2.5-0.5B", 896, 4864),
    Shape("SmolLM2-135M", 576, 1536),
)
# For dry runs: every line of a stage runs, no number means anything.
TINY = Shape("tiny", 32, 48)
