"""Training some neurons of an FFN: the chosen rows of up_proj and columns of down_proj as parameters of their own.

They are parameters of the FFN's module, so that every optimizer that asks for ``named_parameters()`` trains them, and
they follow the module to another device or dtype. The weights they came from stay frozen and whole: the values are
copied into those rows and columns at every forward and whenever the state_dict is read (version counters cannot tell
whether an optimizer has changed them, for torch's fused optimizers do not count), a state_dict that is loaded gives
the parameters the values of its whole weights, and state_dict and saved models keep their keys.

Others put tensors of their own in the place of a parameter (FSDP2, ``functional_call``, ``load_state_dict`` with
``assign=True``), so the module is asked each time for what it has now: :func:`parts`.

Where gate and up are halves of one weight (Phi-3, GLM), training ``up`` alone is training those rows of it.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules.sharded import is_part as is_sharded
from slamkern.modules.sharded import part_of, whole

UP, DOWN = "slamkern_up", "slamkern_down"  # names of the parameters in the FFN's module


def is_part(name: str) -> bool:
    """Whether a parameter of this name holds single neurons, which are in a whole weight of the model too."""
    return name.rpartition(".")[2] in (UP, DOWN)


@dataclass(eq=False)  # tensors have no one truth
class TrainedNeurons:
    """``neurons`` (selected,) int64: which. ``first``: the row of neuron 0 in the weight that up is in."""

    neurons: Tensor
    first: int = 0

    @property
    def rows(self) -> Tensor:
        """(selected,) int64: where ``up`` is in its weight."""
        return self.neurons + self.first


def parts(module: nn.Module) -> tuple[Any, Any]:
    """``up`` (selected, hidden_size) and ``down`` (hidden_size, selected) as ``module`` has them now, or None."""
    return getattr(module, UP, None), getattr(module, DOWN, None)


def part(module: nn.Module, projection: str) -> Any:
    """Of :func:`parts` that of one projection; of a gate there is none."""
    return dict(zip(("up", "down"), parts(module), strict=True)).get(projection)


def put(weight: Tensor, dim: int, index: Tensor, values: Tensor) -> None:
    """Copy ``values`` into rows (dim 0) or columns (1) of ``weight``; every process calls this for a sharded one."""
    if is_sharded(weight):
        full = whole(weight.detach()).index_copy(dim, index, whole(values.detach()))
        weight.detach().copy_(part_of(full, weight))
    else:
        # .data: a value that mirrors its leaf is no new version of the weight for the autograd graph.
        weight.data.index_copy_(dim, index, whole(values.data))


def write_back(module: Any) -> None:
    """Copy the present values into the whole weights of a fused FFN that trains neurons."""
    ffn, (up, down) = module.slamkern_ffn, parts(module)
    w_up, w_down, trained = getattr(module, ffn.up).weight, getattr(module, ffn.down).weight, ffn.trained
    trained.neurons = trained.neurons.to(w_up.device)  # the model may have moved, and its parameters with it
    if up is not None:
        put(w_up, 0, trained.rows, up)
    if down is not None:
        put(w_down, 1, trained.neurons, down)


def attach(module: nn.Module, trained: TrainedNeurons, w_up: Tensor | None, w_down: Tensor | None) -> None:
    """Make rows of ``w_up`` and columns of ``w_down`` parameters of a fused FFN; which, its record has already."""
    if w_up is not None:
        module.register_parameter(UP, nn.Parameter(w_up.detach()[trained.rows].clone()))
    if w_down is not None:
        module.register_parameter(DOWN, nn.Parameter(w_down.detach()[:, trained.neurons].contiguous()))
    module.register_state_dict_pre_hook(_write_back)
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_pre_hook(_read)


def check_unsharded(module: Any) -> None:
    """SlamkernError where neurons of a fused FFN can be neither chosen nor let go: its tensors are in parts."""
    ffn = module.slamkern_ffn
    if any(map(is_sharded, (getattr(module, ffn.up).weight, getattr(module, ffn.down).weight, *parts(module)))):
        raise SlamkernError(
            f"{ffn.path} is sharded; choose its trained neurons before fully_shard, or load the model anew"
        )


def detach(module: nn.Module) -> None:
    """Undo :func:`attach`; the whole weights get the present values. SlamkernError for a sharded FFN."""
    check_unsharded(module)
    _write_back(module)
    for name in (UP, DOWN):
        module._parameters.pop(name, None)
    for hooks in (module._state_dict_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_write_back, _leave_out, _read):
                del hooks[key]


def _write_back(module: nn.Module, *_: Any) -> None:
    write_back(module)


def _leave_out(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in (UP, DOWN):
        state.pop(f"{prefix}{name}", None)


def _read(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state_dict is loaded: the rows and columns of its whole weights are the values of the parameters."""
    ffn, (up, down) = module.slamkern_ffn, parts(module)
    w_up, w_down = state.get(f"{prefix}{ffn.up}.weight"), state.get(f"{prefix}{ffn.down}.weight")
    if up is not None and w_up is not None:
        state[f"{prefix}{UP}"] = part_of(whole(w_up)[ffn.trained.rows.to(w_up.device)], up)
    if down is not None and w_down is not None:
        state[f"{prefix}{DOWN}"] = part_of(whole(w_down)[:, ffn.trained.neurons.to(w_down.device)], down)
