"""The memory of a training step computed from a shape alone: no weights, no GPU, any size of model.

For patched Llama-like decoders (gated FFNs, two norms a layer) of which up and down of some layers are trained on
packed batches. Bytes a token that autograd keeps, with D, G, F the bytes of the hidden size, of all keys and of the
neurons, and H heads:

    lowest trained layer        D + 2F                    x, gate, up of its FFN; nothing below it has a graph
    a frozen layer above        4D + 2G + 2F + 8 + 4H     two norms (input, float32 statistic), q, k, v, the attention's
                                                          output and a float32 logsumexp a head, gate, up
    a trained layer above       the same + D              x of its FFN, for the gradient of up
    recomputing gate and up     - 2F, and + D where x was not kept
    once                        cos and sin; the last norm (D + 4), the gradient of its output (D)

The same numbers measured on a model: memory_budget.py.
"""

from collections.abc import Collection
from typing import Any

from slamkern.training.footprint import Footprint, gradient_bytes, state_bytes, workspace_coefficients
from slamkern.training.step_cost import Dimensions


def shape_footprint(
    config: Any, trained: Collection[int], *, itemsize: int = 2, fp8: bool = False, accumulation: int = 1
) -> Footprint:
    """The Footprint of a shape given as a transformers configuration.

    trained: layers whose up and down are trained. itemsize: bytes of a weight and activation. fp8: frozen weights of
    the layers in FP8 on a GPU, one copy each.
    """
    shape = Dimensions.of(config)
    lowest, one = min(trained), shape.hidden * shape.neurons
    hidden, neurons = shape.hidden * itemsize, shape.neurons * itemsize
    frozen_layer = (
        2 * (hidden + 4) + 2 * (shape.heads_width + shape.key_value_width) * itemsize + 4 * shape.heads + 2 * neurons
    )
    saved: dict[int, float] = dict.fromkeys(range(lowest), 0.0)
    saved[lowest] = hidden + 2 * neurons
    recomputable: dict[int, float] = {lowest: 2 * neurons}
    for layer in range(lowest + 1, shape.layers):
        saved[layer] = frozen_layer + (hidden if layer in trained else 0)
        recomputable[layer] = 2 * neurons - (0 if layer in trained else hidden)
    saved[-1] = 2 * hidden + 4  # the last norm's input and statistic, the gradient of its output
    if lowest + 1 < shape.layers:
        saved[lowest + 1] += 2 * (shape.heads_width // shape.heads) * itemsize  # cos and sin, which all layers share
    sizes = [one] * (2 * len(trained))
    spaces = workspace_coefficients(shape.hidden, shape.neurons, shape.vocabulary, itemsize)
    widest = max(shape.neurons, shape.hidden, shape.heads_width)
    return Footprint(
        weights=_weights(config, shape, len(trained), itemsize, fp8),
        state=sum(state_bytes(size, itemsize, accumulation) for size in sizes),
        gradients=sum(gradient_bytes(size, itemsize, accumulation) for size in sizes),
        offloaded_gradients=sum(sizes) * itemsize,
        saved=saved,
        recomputable=recomputable,
        highest=max(trained),
        ffn=spaces["ffn"] + (widest if fp8 else 0),  # quantized rows
        recomputing=spaces["recomputing"],
        logits=spaces["logits"],
        products=one if fp8 else 0,  # the transposed values of one weight
    )


def _weights(config: Any, shape: Dimensions, trained: int, itemsize: int, fp8: bool) -> int:
    """Bytes of all parameters, and of the positions' frequencies (float32, twice)."""
    attention = 2 * shape.hidden * (shape.heads_width + shape.key_value_width)
    frozen = shape.layers * (attention + 3 * shape.hidden * shape.neurons) - 2 * trained * shape.hidden * shape.neurons
    # Of every frozen weight a float32 scale a row: q, k, v, o, gate, up, down.
    rows = shape.layers * (shape.heads_width + 2 * shape.key_value_width + 2 * shape.hidden + 2 * shape.neurons)
    rows -= trained * (shape.neurons + shape.hidden)
    embeddings = (1 if config.tie_word_embeddings else 2) * shape.vocabulary * shape.hidden
    others = embeddings + (2 * shape.layers + 1) * shape.hidden + 2 * trained * shape.hidden * shape.neurons
    frequencies = 4 * (shape.heads_width // shape.heads)
    return others * itemsize + (frozen + 4 * rows if fp8 else frozen * itemsize) + frequencies
