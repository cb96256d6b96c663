"""Training some neurons of an FFN: the chosen rows of up_proj and columns of down_proj as tensors of their own.

Only these small tensors are parameters for an optimizer (gradient, float32 master, AdamW state); the weights they came
from stay frozen and whole, so state_dict and saved models do not change. Their values are copied into those rows and
columns at every forward and whenever the state_dict is read: version counters cannot tell whether an optimizer has
changed them, for torch's fused optimizers do not count.
"""

from torch import Tensor, nn

from slamkern.errors import SlamkernError


class TrainedNeurons:
    """``neurons`` (selected,) int64; ``up`` (selected, hidden_size), ``down`` (hidden_size, selected), or None."""

    def __init__(self, neurons: Tensor, w_up: Tensor | None, w_down: Tensor | None) -> None:
        self.neurons = neurons
        self.up = None if w_up is None else nn.Parameter(w_up.detach()[neurons].clone())
        self.down = None if w_down is None else nn.Parameter(w_down.detach()[:, neurons].contiguous())

    def write_back(self, w_up: Tensor, w_down: Tensor) -> None:
        """Copy the present values into the whole weights."""
        for leaf, weight in ((self.up, w_up), (self.down, w_down)):
            if leaf is not None and (leaf.device != weight.device or leaf.dtype != weight.dtype):
                raise SlamkernError(
                    f"the model moved to {weight.device} {weight.dtype} after its neurons were selected on"
                    f" {leaf.device} {leaf.dtype}; move it first, then apply the selection"
                )
        # .data: a value that mirrors its leaf is no new version of the weight for the autograd graph.
        if self.up is not None:
            w_up.data[self.neurons] = self.up.data
        if self.down is not None:
            w_down.data[:, self.neurons] = self.down.data
