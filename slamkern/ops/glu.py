"""The registered ops of an FFN (``torch.ops.slamkern``): schema, implementation, shape function, autograd formula.

Nothing but this and norm_fp8.py registers an op. An implementation only picks the backend (dispatch.py) and calls
it; the public functions below check their arguments and return :class:`Moments`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.kernels import ACTIVATIONS, OBSERVABLES
from slamkern.ops.dispatch import backend_for, eager_op, readable
from slamkern.ops.moments import Moments, Recording
from slamkern.ops.once import once_differentiable

_library = torch.library.Library("slamkern", "DEF")
_ARGS = "Tensor gate, Tensor? up, Tensor language_ids, int num_languages, str activation, str observe, str backend"
_library.define("swiglu(Tensor gate, Tensor? up, str activation, str backend) -> Tensor")
_library.define(f"swiglu_stats({_ARGS}) -> (Tensor hidden, Tensor count, Tensor mean, Tensor m2, Tensor active)")
_library.define(
    "swiglu_record(Tensor gate, Tensor? up, Tensor language_ids, Tensor(a!)[] moments, Tensor(b!)[] plan,"
    " str activation, str observe, str backend) -> Tensor"
)
_library.define(
    "swiglu_backward(Tensor grad_hidden, Tensor gate, Tensor? up, str activation, bool need_hidden, str backend,"
    " bool need_gate=True) -> (Tensor grad_gate, Tensor grad_up, Tensor hidden)"
)


def _swiglu(gate: Tensor, up: Tensor | None, activation: str, backend: str) -> Tensor:
    module = backend_for(backend, gate.device.type, gate.dtype)
    return module.swiglu(readable(gate), up if up is None else readable(up), activation)


def _swiglu_stats(
    gate: Tensor, up: Tensor | None, ids: Tensor, num_languages: int, activation: str, observe: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    module = backend_for(backend, gate.device.type, gate.dtype)
    return module.swiglu_stats(
        readable(gate), up if up is None else readable(up), ids, num_languages, activation, observe
    )


def _swiglu_record(
    gate: Tensor,
    up: Tensor | None,
    ids: Tensor,
    moments: Sequence[Tensor],
    plan: Sequence[Tensor],
    activation: str,
    observe: str,
    backend: str,
) -> Tensor:
    module = backend_for(backend, gate.device.type, gate.dtype)
    num_languages, into = len(moments[0]), tuple(moments)
    up = up if up is None else readable(up)
    return module.swiglu_stats(readable(gate), up, ids, num_languages, activation, observe, into, plan)[0]


def _swiglu_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    activation: str,
    need_hidden: bool,
    backend: str,
    need_gate: bool = True,
) -> tuple[Tensor, ...]:
    module = backend_for(backend, gate.device.type, gate.dtype)
    outputs = module.swiglu_backward(
        readable(grad), readable(gate), up if up is None else readable(up), activation, need_hidden, need_gate
    )
    # An op cannot return None: what was not asked for, or does not exist, comes back empty.
    return tuple(gate.new_empty(0) if output is None else output for output in outputs)


for _name, _implementation in (
    ("swiglu", _swiglu),
    ("swiglu_stats", _swiglu_stats),
    ("swiglu_record", _swiglu_record),
    ("swiglu_backward", _swiglu_backward),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")

# What the autograd Functions and the modules of the package call.
eager_swiglu = eager_op("swiglu", _swiglu)
eager_swiglu_record = eager_op("swiglu_record", _swiglu_record)
eager_swiglu_backward = eager_op("swiglu_backward", _swiglu_backward)


def _empty_moments(gate: Tensor, num_languages: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (num_languages, gate.shape[1])
    return (
        torch.empty(num_languages, dtype=torch.int64, device=gate.device),
        torch.empty(shape, dtype=torch.float64, device=gate.device),
        torch.empty(shape, dtype=torch.float64, device=gate.device),
        torch.empty(shape, dtype=torch.int64, device=gate.device),
    )


@torch.library.register_fake("slamkern::swiglu", lib=_library)
def _(gate, up, activation, backend):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape)


@torch.library.register_fake("slamkern::swiglu_stats", lib=_library)
def _(gate, up, language_ids, num_languages, activation, observe, backend):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape), *_empty_moments(gate, num_languages)


@torch.library.register_fake("slamkern::swiglu_record", lib=_library)
def _(gate, up, language_ids, moments, plan, activation, observe, backend):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape)


@torch.library.register_fake("slamkern::swiglu_backward", lib=_library)
def _(grad_hidden, gate, up, activation, need_hidden, backend, need_gate=True):  # type: ignore[no-untyped-def]
    wanted = (need_gate, up is not None, need_hidden)
    return tuple(gate.new_empty(gate.shape) if asked else gate.new_empty(0) for asked in wanted)


def _setup_swiglu(ctx, inputs, output):  # type: ignore[no-untyped-def]
    gate, up, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(gate, up)


def _setup_swiglu_stats(ctx, inputs, output):  # type: ignore[no-untyped-def]
    gate, up, _, _, ctx.activation, _, ctx.backend = inputs
    ctx.save_for_backward(gate, up)
    # Statistics are observations, not a function to differentiate: only hidden carries a gradient.
    ctx.mark_non_differentiable(*output[1:])


def _grads(ctx, grad_hidden):  # type: ignore[no-untyped-def]
    gate, up = ctx.saved_tensors
    grad_gate, grad_up, _ = torch.ops.slamkern.swiglu_backward(
        grad_hidden, gate, up, ctx.activation, False, ctx.backend
    )
    return grad_gate, None if up is None else grad_up


def _differentiate_swiglu(ctx, grad_hidden):  # type: ignore[no-untyped-def]
    return *_grads(ctx, grad_hidden), None, None


def _differentiate_swiglu_stats(ctx, grad_hidden, *_):  # type: ignore[no-untyped-def]
    return *_grads(ctx, grad_hidden), None, None, None, None, None


torch.library.register_autograd("slamkern::swiglu", _differentiate_swiglu, setup_context=_setup_swiglu, lib=_library)
torch.library.register_autograd(
    "slamkern::swiglu_stats", _differentiate_swiglu_stats, setup_context=_setup_swiglu_stats, lib=_library
)


class _Combine(torch.autograd.Function):
    """``combine`` where autograd watches: the recorder's tensors are written on the way, outside the graph."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, gate: Tensor, up: Tensor | None, activation: str, backend: str, recording: Recording | None
    ) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.backend = activation, backend
        return _combined(gate, up, activation, backend, recording)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hidden: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        need_gate, need_up, *_ = ctx.needs_input_grad
        grad_gate, grad_up, _ = eager_swiglu_backward(
            grad_hidden, gate, up, ctx.activation, False, ctx.backend, need_gate
        )
        return grad_gate if need_gate else None, grad_up if need_up else None, None, None, None


def combine(gate: Tensor, up: Tensor | None, activation: str, backend: str, recording: Recording | None) -> Tensor:
    """``hidden`` of (tokens, neurons), and the statistics of a recording added to its moments, in one launch."""
    whole = _Combine.apply if torch.is_grad_enabled() else _combined
    return whole(gate, up, activation, backend, recording)


def _combined(gate: Tensor, up: Tensor | None, activation: str, backend: str, recording: Recording | None) -> Tensor:
    if recording is None:
        return eager_swiglu(gate, up, activation, backend)
    state, plan, ids = recording.moments.tensors, recording.plan, recording.language_ids
    return eager_swiglu_record(gate, up, ids, state, plan, activation, recording.observe, backend)


def _check(gate: Tensor, up: Tensor | None, activation: str) -> None:
    if gate.dim() != 2:
        raise SlamkernError(f"gate has shape {tuple(gate.shape)}; expected (tokens, neurons)")
    if not gate.is_floating_point():
        raise SlamkernError(f"gate is {gate.dtype}; expected a floating dtype")
    if up is not None and (up.shape != gate.shape or up.dtype != gate.dtype or up.device != gate.device):
        raise SlamkernError(
            f"up is {tuple(up.shape)} {up.dtype} on {up.device}; expected gate's "
            f"{tuple(gate.shape)} {gate.dtype} on {gate.device}"
        )
    if activation not in ACTIVATIONS:
        raise SlamkernError(f"unknown activation {activation!r}; known: {' '.join(ACTIVATIONS)}")


def swiglu(gate: Tensor, up: Tensor | None, activation: str = "silu", backend: str = "auto") -> Tensor:
    """``hidden = act_fn(gate) * up`` (``act_fn(gate)`` where ``up`` is None), differentiable.

    ``gate``, ``up``, ``hidden``: (tokens, neurons), one floating dtype. Computed in float32, rounded once.
    """
    _check(gate, up, activation)
    return torch.ops.slamkern.swiglu(gate, up, activation, backend)


def swiglu_stats(
    gate: Tensor,
    up: Tensor | None,
    language_ids: Tensor | None,
    num_languages: int,
    activation: str = "silu",
    observe: str = "gate",
    backend: str = "auto",
) -> tuple[Tensor, Moments | None]:
    """``swiglu`` and, in the same pass over memory, the moments of each language's tokens.

    Args:
        gate, up: (tokens, neurons), any floating dtype; ``up`` None for an FFN without a gate.
        language_ids: (tokens,) int32, ``-1`` ignored; None for no statistics (then the moments are None).
        observe: ``"gate"`` for ``act_fn(gate)``, ``"hidden"`` for ``act_fn(gate) * up``.

    Returns ``hidden`` (tokens, neurons) and :class:`Moments` over ``num_languages`` languages. Deterministic:
    bitwise the same from run to run.
    """
    if language_ids is None:
        return swiglu(gate, up, activation, backend), None
    _check(gate, up, activation)
    if observe not in OBSERVABLES:
        raise SlamkernError(f"unknown observable {observe!r}; known: {' '.join(OBSERVABLES)}")
    if language_ids.shape != gate.shape[:1] or language_ids.dtype != torch.int32:
        raise SlamkernError(
            f"language_ids is {tuple(language_ids.shape)} {language_ids.dtype}; "
            f"expected ({gate.shape[0]},) torch.int32, one id a token"
        )
    if num_languages < 1:
        raise SlamkernError(f"num_languages is {num_languages}; statistics need at least one language")
    hidden, *moments = torch.ops.slamkern.swiglu_stats(
        gate, up, language_ids, num_languages, activation, observe, backend
    )
    return hidden, Moments(*moments)
