"""What a step costs each of N processes, as arithmetic from a shape: every one with all weights, or sharded by FSDP2.

Sharded, a rank holds 1/N of the weights, masters and moments, the whole of two decoder layers at a time (the one that
computes and the one whose weights are under way), and the whole of what belongs to no layer: embeddings and head. What
autograd saves is not sharded: each rank has micro-batches of its own.

Bytes that a rank sends in a step, of T trained parameters and W bytes of weights; a ring sends (N - 1)/N of a tensor
for a reduce-scatter or an all-gather, and twice that for an all-reduce:

    replicated    2 (N - 1)/N * 4 T                      the float32 sums of the gradients, once a step
    sharded       (N - 1)/N * (W + W above + 4 T)        for every micro-batch: weights gathered for the forward, again
                                                         for the backward down to the lowest trained layer, gradients
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from slamkern.training.footprint import Footprint
from slamkern.training.step_cost import Dimensions

SUM_BYTES = 4  # gradients are summed in float32


def layer_parameters(shape: Dimensions) -> int:
    """Parameters of one decoder layer: attention, a gated FFN, two norms."""
    attention = 2 * shape.hidden * (shape.heads_width + shape.key_value_width)
    return attention + 3 * shape.hidden * shape.neurons + 2 * shape.hidden


def sharded_footprint(
    whole: Footprint, config: Any, trained: Collection[int], processes: int, *, itemsize: int = 2
) -> Footprint:
    """The Footprint of one rank of ``processes`` under FSDP2; ``whole`` is that of a process with all weights."""
    shape = Dimensions.of(config)
    layers = layer_parameters(shape) * itemsize
    gathered = whole.weights - shape.layers * layers + 2 * layers
    in_a_layer = whole.offloaded_gradients // len(trained)  # whole until they are scattered
    return replace(
        whole,
        weights=-(-whole.weights // processes) + gathered,
        state=-(-whole.state // processes),
        gradients=-(-whole.gradients // processes) + in_a_layer,
    )


def wire_bytes(
    config: Any, trained: Collection[int], trained_parameters: int, weights: int, processes: int, micro_batches: int,
    *, itemsize: int = 2,
) -> dict[str, int]:  # fmt: skip
    """Bytes that one rank sends in a step, ``replicated`` and ``sharded``.

    weights: bytes of all weights. micro_batches: of one process in a step.
    """
    shape = Dimensions.of(config)
    sums = SUM_BYTES * trained_parameters
    above = weights - min(trained) * layer_parameters(shape) * itemsize
    share = (processes - 1) / processes
    return {
        "replicated": round(2 * share * sums),
        "sharded": round(share * micro_batches * (weights + above + sums)),
    }
