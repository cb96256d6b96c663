"""Training some neurons of an FFN: the chosen rows of up_proj and columns of down_proj as parameters of their own.

They are parameters of the FFN's module, so that every optimizer that asks for ``named_parameters()`` trains them, and
they follow the module to another device or dtype. The weights they came from stay frozen and whole: the values are
copied into those rows and columns at every forward and whenever the state_dict is read (version counters cannot tell
whether an optimizer has changed them, for torch's fused optimizers do not count), a state_dict that is loaded gives
the parameters the values of its whole weights, and state_dict and saved models keep their keys.

Where gate and up are halves of one weight (Phi-3, GLM), training ``up`` alone is training those rows of it.
"""

from typing import Any

from torch import Tensor, nn

UP, DOWN = "slamkern_up", "slamkern_down"  # names of the parameters in the FFN's module


def is_part(name: str) -> bool:
    """Whether a parameter of this name holds single neurons, which are in a whole weight of the model too."""
    return name.rpartition(".")[2] in (UP, DOWN)


class TrainedNeurons:
    """``neurons`` (selected,) int64; ``up`` (selected, hidden_size), ``down`` (hidden_size, selected), or None.

    ``first``: the row of neuron 0 in the weight that up is in.
    """

    def __init__(self, neurons: Tensor, w_up: Tensor | None, w_down: Tensor | None, first: int = 0) -> None:
        self.neurons, self.first = neurons, first
        self.up = None if w_up is None else nn.Parameter(w_up.detach()[neurons + first].clone())
        self.down = None if w_down is None else nn.Parameter(w_down.detach()[:, neurons].contiguous())

    @property
    def rows(self) -> Tensor:
        """(selected,) int64: where ``up`` is in its weight."""
        return self.neurons + self.first

    def write_back(self, w_up: Tensor, w_down: Tensor) -> None:
        """Copy the present values into the whole weights."""
        self.neurons = self.neurons.to(w_up.device)  # the model may have moved, and its parameters with it
        # .data: a value that mirrors its leaf is no new version of the weight for the autograd graph.
        if self.up is not None:
            w_up.data[self.rows] = self.up.data
        if self.down is not None:
            w_down.data[:, self.neurons] = self.down.data


def attach(module: nn.Module, trained: TrainedNeurons) -> None:
    """Make the neurons parameters of ``module``, a fused FFN that has them already as ``slamkern_ffn.trained``."""
    for name, parameter in ((UP, trained.up), (DOWN, trained.down)):
        if parameter is not None:
            module.register_parameter(name, parameter)
    module.register_state_dict_pre_hook(_write_back)
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_pre_hook(_read)


def detach(module: nn.Module) -> None:
    """Undo :func:`attach`; the whole weights get the present values."""
    _write_back(module)
    for name in (UP, DOWN):
        module._parameters.pop(name, None)
    for hooks in (module._state_dict_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_write_back, _leave_out, _read):
                del hooks[key]


def _weights(module: Any) -> tuple[Tensor, Tensor]:
    ffn = module.slamkern_ffn
    return getattr(module, ffn.up).weight, getattr(module, ffn.down).weight


def _write_back(module: Any, *_: Any) -> None:
    module.slamkern_ffn.trained.write_back(*_weights(module))


def _leave_out(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in (UP, DOWN):
        state.pop(f"{prefix}{name}", None)


def _read(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state_dict is loaded: the rows and columns of its whole weights are the values of the parameters."""
    ffn = module.slamkern_ffn
    up, down = state.get(f"{prefix}{ffn.up}.weight"), state.get(f"{prefix}{ffn.down}.weight")
    if ffn.trained.up is not None and up is not None:
        state[f"{prefix}{UP}"] = up[ffn.trained.rows.to(up.device)]
    if ffn.trained.down is not None and down is not None:
        state[f"{prefix}{DOWN}"] = down[:, ffn.trained.neurons.to(down.device)]
