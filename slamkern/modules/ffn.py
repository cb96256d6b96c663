"""The fused forward of an FFN: mixed into the class of one module instance, sharing that module's parameters.

Three shapes are fused (found by ffn_match.py):

- ``gated``: ``down(act(gate(x)) * up(x))``; the class of the FFN block is extended.
- ``gate_up``: the same with gate and up in one projection whose output is split in halves.
- ``plain``: ``down(act(up(x)))``; only the activation module is extended, everything around it stays.

Projections and activation stay modules. A projection that is not an ordinary Linear at call time (a LoRA adapter, a
hook, a sharded wrapper) is called as a module, and so is an activation with a hook, or another one than was found:
whatever they do still happens, and statistics are of what they give. Under ``torch.export`` and the transforms of
``torch.func`` the block's own forward runs: the same numbers, nothing fused.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules import ffn_autograd, trained_neurons
from slamkern.modules.fp8_linear import FP8Linear, weight_of
from slamkern.modules.hooks import is_untouched
from slamkern.modules.surgery import Extended, extend, is_transformed, restore
from slamkern.modules.trained_neurons import TrainedNeurons
from slamkern.ops import glu, reference
from slamkern.ops.moments import Recording, merge_moments_


@dataclass
class FFN:
    """One FFN of a model: where it is and how it computes. Names are attribute names of its block."""

    path: str  # of the block in the model as it was patched; a wrapper put on later has paths of its own
    layer: int
    kind: str  # "gated" | "gate_up" | "plain"
    gate: str | None
    up: str
    down: str
    act: str | None  # None where the forward calls a function
    activation: str  # of the module that is there now, or was: Fused.fits()
    neurons: int
    gate_first: bool = True  # "gate_up": gate is the first half
    dropout: float = 0.0  # "gated": of the result, in training mode
    backend: str = "auto"
    recompute: bool = False
    recording: Recording | None = field(default=None, compare=False)
    trained: TrainedNeurons | None = field(default=None, compare=False)  # not "plain"
    act_module: nn.Module | None = field(default=None, compare=False, repr=False)  # the one at ``act``

    def recording_of(self, tokens: int) -> Recording | None:
        """What to record of a forward over so many tokens, if anything."""
        recording = self.recording
        if recording is not None and recording.language_ids.shape[0] != tokens:
            raise SlamkernError(
                f"{self.path} saw {tokens} tokens, but language_ids names {recording.language_ids.shape[0]}; "
                "give one id for every position of input_ids"
            )
        return recording

    def combine(self, gate: Tensor, up: Tensor | None) -> Tensor:
        """Activation and product over (..., neurons), with the statistics of a recording where there is one."""
        shape = gate.shape
        gate = gate.reshape(-1, shape[-1])
        up = None if up is None else up.reshape(-1, shape[-1])
        recording = self.recording_of(gate.shape[0])
        return glu.combine(gate, up, self.activation, self.backend, recording).view(shape)

    def multiply(self, activated: Tensor, up: Tensor) -> Tensor:
        """``combine`` where the activation has been computed already, by a module that others changed."""
        hidden = activated * up
        recording = self.recording_of(hidden.numel() // hidden.shape[-1])
        if recording is not None:
            observed = (hidden if recording.observe == "hidden" else activated).detach()
            into = recording.moments.tensors
            added = reference.moments(observed.reshape(-1, hidden.shape[-1]), recording.language_ids, len(into[0]))
            merge_moments_(into, added)
        return hidden


class Fused(Extended):
    """Base of the mixins of an FFN; carries its :class:`FFN`."""

    slamkern_ffn: FFN

    def _hidden(self, gate: Tensor, up: Tensor) -> Tensor:
        ffn = self.slamkern_ffn
        act = self._changed_activation()
        return ffn.combine(gate, up) if act is None else ffn.multiply(act(gate), up)

    def _changed_activation(self) -> Any:
        """The activation module where calling it does more than the activation, otherwise None."""
        ffn = self.slamkern_ffn
        act: Any = None if ffn.act is None else self._modules[ffn.act]
        return None if act is None or (is_untouched(act) and act is ffn.act_module) else act

    def fits(self) -> bool:
        """Whether the activation module is the one that was fused; another one is called."""
        ffn = self.slamkern_ffn
        return ffn.act is None or ffn.kind == "plain" or self._modules[ffn.act] is ffn.act_module

    def _runs_whole(self, x: Tensor, *projections: nn.Module) -> bool:
        """Whether the FFN is one autograd Function here; what single neurons hold is in the weights then, or refused.

        Without gradients nothing is saved, so one op after another is as good.
        """
        ffn = self.slamkern_ffn
        if ffn.trained is not None:
            trained_neurons.write_back(self)
        if not torch.is_grad_enabled():
            return False
        usual = all(map(is_plain, projections)) and self._changed_activation() is None
        if usual and not torch.is_autocast_enabled(x.device.type):
            return True
        if ffn.trained is not None:
            raise SlamkernError(
                f"{ffn.path} trains single neurons, which needs its own Linear projections and activation without"
                " hooks or autocast; train whole layers instead, or load the model in the dtype to train in"
            )
        return False

    def _whole(self, x: Tensor, *weights: Any) -> Tensor:
        ffn = self.slamkern_ffn
        tokens = x.reshape(-1, x.shape[-1])
        options = ffn_autograd.FFNOptions(ffn.activation, ffn.backend, ffn.recompute, ffn.recording_of(len(tokens)))
        y = ffn_autograd.GatedFFN.apply(tokens, *weights, options)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _runs_unfused(self) -> bool:
        """Whether the module's own forward has to run: in a transform that cannot see through ours."""
        if not is_transformed():
            return False
        ffn = self.slamkern_ffn
        if ffn.recording is not None or ffn.trained is not None:
            raise SlamkernError(
                f"{ffn.path}: statistics and single trained neurons do not exist under torch.export and torch.func"
            )
        return True


def is_plain(linear: nn.Module) -> bool:
    """Whether calling ``linear`` is exactly ``F.linear`` with its weight and bias, or that in FP8."""
    return (type(linear) is nn.Linear or isinstance(linear, FP8Linear)) and is_untouched(linear)


class FusedGated(Fused):
    """Forward of an FFN with gate, up and down as separate projections; x is (..., hidden_size)."""

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_unfused():
            return super().forward(x)
        ffn = self.slamkern_ffn
        children = self._modules  # an attribute of a module costs a microsecond
        gate: Any = children[ffn.gate]  # type: ignore[index]
        up: Any = children[ffn.up]
        down: Any = children[ffn.down]
        if self._runs_whole(x, gate, up, down):
            weights = (weight_of(gate), weight_of(up), weight_of(down), gate.bias, up.bias, down.bias)
            trained = ffn.trained
            neurons = (None, None, None) if trained is None else (*trained_neurons.parts(self), trained.neurons)
            y = self._whole(x, *weights, *neurons)
        else:
            y = down(self._hidden(gate(x), up(x)))
        return F.dropout(y, ffn.dropout, self.training) if ffn.dropout else y


class FusedGateUp(Fused):
    """Forward of an FFN whose gate and up projections are the halves of one; x is (..., hidden_size).

    Where that one is trained whole, its gradient is torch's own: of halves it would be made twice, padded with zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self._runs_unfused():
            return super().forward(x)
        ffn = self.slamkern_ffn
        both: Any = self._modules[ffn.up]
        down: Any = self._modules[ffn.down]
        halves = slice(None, ffn.neurons), slice(ffn.neurons, None)
        at_gate, at_up = halves if ffn.gate_first else halves[::-1]
        trained = ffn.trained
        frozen = type(both) is nn.Linear and not both.weight.requires_grad
        if (frozen or trained is not None) and self._runs_whole(x, both, down):
            bias = both.bias
            biases = (None, None) if bias is None else (bias[at_gate], bias[at_up])
            weights = (both.weight[at_gate], both.weight[at_up], weight_of(down), *biases, down.bias)
            if trained is None:
                return self._whole(x, *weights, None, None, None)
            up, columns = trained_neurons.parts(self)
            if up is None or len(up) != ffn.neurons:
                return self._whole(x, *weights, up, columns, trained.neurons)
            # The whole half: nothing to gather.
            weights = (weights[0], up, *weights[2:])
            return self._whole(x, *weights, None, columns, None if columns is None else trained.neurons)
        projected = both(x)
        return down(self._hidden(projected[..., at_gate], projected[..., at_up]))


class FusedActivation(Fused):
    """Forward of the activation module of an FFN without a gate; x is (..., neurons)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self._runs_unfused() else self.slamkern_ffn.combine(x, None)


MIXINS: dict[str, type[Fused]] = {"gated": FusedGated, "gate_up": FusedGateUp, "plain": FusedActivation}


def fuse(module: nn.Module, ffn: FFN) -> None:
    """Extend the class of this one instance with the fused forward, or let it compute as ``ffn`` says from now on.

    Its parameters and children stay.
    """
    extend(module, MIXINS[ffn.kind], slamkern_ffn=ffn)


def train_neurons(
    module: Fused, trained: TrainedNeurons | None, w_up: Tensor | None = None, w_down: Tensor | None = None
) -> None:
    """Train these neurons of a fused block with a gate in those of its weights, or none.

    Its state_dict always has their latest values. SlamkernError for a block whose weights are sharded.
    """
    ffn = module.slamkern_ffn
    if ffn.trained is not None:
        trained_neurons.detach(module)
    ffn.trained = trained
    if trained is not None:
        trained_neurons.attach(module, trained, w_up, w_down)


def unfuse(module: Fused) -> None:
    """Give the instance its own class back, as it was before :func:`fuse`."""
    train_neurons(module, None)
    restore(module, "slamkern_ffn")
