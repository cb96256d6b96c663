"""The memory of a training step computed from a shape alone: no weights, no GPU, any size of model.

For patched Llama-like decoders (gated FFNs, two norms a layer) trained on packed batches. Bytes a token that autograd
keeps, with D, Q, G, F the bytes of the hidden size, of all queries, of all keys and of the neurons, and H heads:

    lowest trained FFN          D + 2F                    x, gate, up; nothing below it has a graph
    a frozen layer above        2D + 2Q + 2G + 2F + 8 + 4H    two norms (input, float32 statistic), q, k, v, the
                                                          attention's output and a float32 logsumexp a head, gate, up
    a trained FFN above         the same + D              x, for the gradient of up or gate
    only down is trained        F in the lowest one (its input), nothing more above
    trained attention           a frozen layer + D + Q    x of q, k, v and the input of the output's product; the
                                                          lowest one without its first norm, (D + 4)
    everything                  a frozen layer + 2D + Q   in every layer; once 8 for a token's id
    recomputing gate and up     - 2F, and + D where x was not kept
    once                        cos and sin; the last norm (D + 4), the gradient of its output (D)

The same numbers measured on a model: memory_budget.py.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

from slamkern.training.footprint import Footprint, gradient_bytes, state_bytes, workspace_coefficients
from slamkern.training.step_cost import Dimensions

Part = Literal["ffn", "attention", "full"]


def shape_footprint(
    config: Any,
    trained: Collection[int],
    *,
    part: Part = "ffn",
    projections: Collection[str] = ("up", "down"),
    itemsize: int = 2,
    fp8: bool = False,
    accumulation: int = 1,
    repeated_keys: bool = False,
) -> Footprint:
    """The Footprint of a shape given as a transformers configuration.

    trained: layers of which ``part`` is trained: ``projections`` of the FFN, the four matrices of the attention, or
    everything (then all layers, embeddings and head). itemsize: bytes of a weight and activation. fp8: frozen weights
    of the layers in FP8 on a GPU, one copy each. repeated_keys: attention keeps keys and values for every head of the
    queries, as on a GPU where ``varlen_attention.shares_keys`` is not so.
    """
    shape = Dimensions.of(config)
    kept = replace(shape, key_value_width=shape.heads_width) if repeated_keys else shape
    lowest = min(trained)
    sizes = _trained_sizes(config, shape, len(trained), part, projections)
    spaces = workspace_coefficients(shape.hidden, shape.neurons, shape.vocabulary, itemsize)
    widest = max(shape.neurons, shape.hidden, shape.heads_width)
    saved, recomputable = _saved(kept, frozenset(trained), part, projections, itemsize)
    return Footprint(
        weights=_weights(config, shape, len(trained), itemsize, fp8),
        state=sum(state_bytes(size, itemsize, accumulation) for size in sizes),
        gradients=sum(gradient_bytes(size, itemsize, accumulation) for size in sizes),
        offloaded_gradients=sum(sizes) * itemsize,
        saved=dict.fromkeys(range(lowest), 0.0) | saved,
        recomputable={layer: less for layer, less in recomputable.items() if less > 0},
        highest=max(trained) if part == "ffn" else shape.layers - 1,
        ffn=spaces["ffn"] + (widest if fp8 else 0),  # quantized rows
        recomputing=spaces["recomputing"],
        logits=spaces["logits"],
        products=shape.hidden * shape.neurons if fp8 else 0,  # the transposed values of one weight
    )


def _saved(
    shape: Dimensions, trained: Collection[int], part: Part, projections: Collection[str], itemsize: int
) -> tuple[dict[int, float], dict[int, float]]:
    """(what is kept, what recomputing saves of it): layer -> bytes a position, from the lowest trained one on."""
    hidden, queries, neurons = (size * itemsize for size in (shape.hidden, shape.heads_width, shape.neurons))
    norm = hidden + 4
    attention = 2 * (shape.heads_width + shape.key_value_width) * itemsize + 4 * shape.heads
    lowest = min(trained)
    keeps_input = part == "full" or (part == "ffn" and bool({"gate", "up"} & set(projections)))
    more = {"ffn": 0, "attention": hidden + queries, "full": hidden + queries}[part] + (hidden if keeps_input else 0)
    saved: dict[int, float] = {}
    recomputable: dict[int, float] = {}
    for layer in range(lowest, shape.layers):
        saved[layer] = 2 * norm + attention + 2 * neurons + (more if layer in trained else 0)
        recomputable[layer] = 2 * neurons - (0 if keeps_input and layer in trained else hidden)
    first = lowest if part != "ffn" else lowest + 1  # the first layer with a graph through its attention
    if part == "ffn":
        saved[lowest] = hidden + 2 * neurons if keeps_input else neurons
        recomputable[lowest] = 2 * neurons if keeps_input else 0
    elif part == "attention":
        saved[lowest] -= norm
    if first in saved:
        saved[first] += 2 * (shape.heads_width // shape.heads) * itemsize  # cos and sin, which all layers share
    ids = 8 if part == "full" else 0
    saved[-1] = hidden + norm + ids  # the last norm's input and statistic, the gradient of its output
    return saved, recomputable


def _trained_sizes(config: Any, shape: Dimensions, layers: int, part: Part, projections: Collection[str]) -> list[int]:
    """Numbers of elements of what is trained."""
    if part == "full":
        return [_parameters(config, shape)]
    if part == "attention":
        return [shape.hidden * width for width in (shape.heads_width, shape.key_value_width)] * (2 * layers)
    return [shape.hidden * shape.neurons] * (len(projections) * layers)


def _parameters(config: Any, shape: Dimensions) -> int:
    attention = 2 * shape.hidden * (shape.heads_width + shape.key_value_width)
    embeddings = (1 if config.tie_word_embeddings else 2) * shape.vocabulary * shape.hidden
    layers = shape.layers * (attention + 3 * shape.hidden * shape.neurons)
    return layers + embeddings + (2 * shape.layers + 1) * shape.hidden


def _weights(config: Any, shape: Dimensions, trained: int, itemsize: int, fp8: bool) -> int:
    """Bytes of all parameters, and of the positions' frequencies (float32, twice)."""
    parameters, frequencies = _parameters(config, shape), 4 * (shape.heads_width // shape.heads)
    if not fp8:
        return parameters * itemsize + frequencies
    attention = 2 * shape.hidden * (shape.heads_width + shape.key_value_width)
    frozen = shape.layers * (attention + 3 * shape.hidden * shape.neurons) - 2 * trained * shape.hidden * shape.neurons
    # Of every frozen weight a float32 scale a row: q, k, v, o, gate, up, down.
    rows = shape.layers * (shape.heads_width + 2 * shape.key_value_width + 2 * shape.hidden + 2 * shape.neurons)
    rows -= trained * (shape.neurons + shape.hidden)
    return (parameters - frozen) * itemsize + frozen + 4 * rows + frequencies
