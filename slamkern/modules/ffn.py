"""The fused forward of an FFN: mixed into the class of one module instance, sharing that module's parameters.

Three shapes are fused (found by ffn_match.py):

- ``gated``: ``down(act(gate(x)) * up(x))``; the class of the FFN block is extended.
- ``gate_up``: the same with gate and up in one projection whose output is split in halves.
- ``plain``: ``down(act(up(x)))``; only the activation module is extended, everything around it stays.

The projections stay modules. Where one of them is not an ordinary Linear at call time (a LoRA adapter, a hook, a
sharded wrapper) it is called as a module, so whatever it does still happens; only activation, product and
statistics are fused then.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules import ffn_autograd
from slamkern.modules.fp8_linear import FP8Linear, weight_of
from slamkern.modules.surgery import Extended, extend, restore
from slamkern.modules.trained_neurons import TrainedNeurons
from slamkern.ops import glu
from slamkern.ops.moments import Recording


@dataclass
class FFN:
    """One fused FFN of a model: where it is and how it computes. Names are attribute names of its block."""

    path: str  # module path of the block in the model
    layer: int
    kind: str  # "gated" | "gate_up" | "plain"
    gate: str | None
    up: str
    down: str
    act: str
    activation: str
    neurons: int
    gate_first: bool = True  # "gate_up": gate is the first half
    backend: str = "auto"
    recompute: bool = False
    recording: Recording | None = field(default=None, compare=False)
    trained: TrainedNeurons | None = field(default=None, compare=False)  # "gated" only

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


class Fused(Extended):
    """Base of the mixins of an FFN; carries its :class:`FFN`."""

    slamkern_ffn: FFN


def is_plain(linear: nn.Module) -> bool:
    """Whether calling ``linear`` is exactly ``F.linear`` with its weight and bias, or that in FP8."""
    return (
        (type(linear) is nn.Linear or isinstance(linear, FP8Linear))
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        and "forward" not in linear.__dict__
    )


class FusedGated(Fused):
    """Forward of an FFN with gate, up and down as separate projections; x is (..., hidden_size)."""

    def forward(self, x: Tensor) -> Tensor:
        ffn = self.slamkern_ffn
        gate: Any = getattr(self, ffn.gate)  # type: ignore[arg-type]
        up: Any = getattr(self, ffn.up)
        down: Any = getattr(self, ffn.down)
        trained = ffn.trained
        if trained is not None:
            trained.write_back(up.weight, down.weight)
        whole = (
            torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
            and is_plain(gate)
            and is_plain(up)
            and is_plain(down)
        )
        if not whole:
            if trained is not None and torch.is_grad_enabled():
                raise SlamkernError(
                    f"{ffn.path} trains single neurons, which needs its own Linear projections without hooks or"
                    " autocast; train whole layers instead, or load the model in the dtype to train in"
                )
            return down(ffn.combine(gate(x), up(x)))
        tokens = x.reshape(-1, x.shape[-1])
        recording = ffn.recording_of(tokens.shape[0])
        y = ffn_autograd.GatedFFN.apply(
            tokens,
            weight_of(gate),
            weight_of(up),
            weight_of(down),
            gate.bias,
            up.bias,
            down.bias,
            *((None, None, None) if trained is None else (trained.up, trained.down, trained.neurons)),
            ffn_autograd.FFNOptions(ffn.activation, ffn.backend, ffn.recompute, recording),
        )
        return y.view(*x.shape[:-1], y.shape[-1])


class FusedGateUp(Fused):
    """Forward of an FFN whose gate and up projections are the halves of one; x is (..., hidden_size)."""

    def forward(self, x: Tensor) -> Tensor:
        ffn = self.slamkern_ffn
        halves = getattr(self, ffn.up)(x)
        first, second = halves[..., : ffn.neurons], halves[..., ffn.neurons :]
        gate, up = (first, second) if ffn.gate_first else (second, first)
        return getattr(self, ffn.down)(ffn.combine(gate, up))


class FusedActivation(Fused):
    """Forward of the activation module of an FFN without a gate; x is (..., neurons)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.slamkern_ffn.combine(x, None)


MIXINS: dict[str, type[Fused]] = {"gated": FusedGated, "gate_up": FusedGateUp, "plain": FusedActivation}


def fuse(module: nn.Module, ffn: FFN) -> None:
    """Extend the class of this one instance with the fused forward; its parameters and children stay."""
    extend(module, MIXINS[ffn.kind], slamkern_ffn=ffn)


def train_neurons(module: Fused, trained: TrainedNeurons | None) -> None:
    """Train these neurons of a fused ``gated`` block, or none; its state_dict always has their latest values."""
    ffn = module.slamkern_ffn
    if ffn.trained is not None:
        _write_back(module)
        module._state_dict_pre_hooks = {
            key: hook for key, hook in module._state_dict_pre_hooks.items() if hook is not _write_back
        }
    ffn.trained = trained
    if trained is not None:
        module.register_state_dict_pre_hook(_write_back)


def _write_back(module: nn.Module, *_: Any) -> None:
    ffn: FFN = module.slamkern_ffn  # type: ignore[assignment]
    if ffn.trained is not None:
        ffn.trained.write_back(getattr(module, ffn.up).weight, getattr(module, ffn.down).weight)


def unfuse(module: Fused) -> None:
    """Give the instance its own class back, as it was before :func:`fuse`."""
    train_neurons(module, None)
    restore(module, "slamkern_ffn")
