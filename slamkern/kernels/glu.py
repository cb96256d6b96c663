"""``hidden = act_fn(gate) * up`` and its gradients: one read of every input, one write of every output.

    hidden    = act(gate) * up                       (act(gate) where up is None)
    grad_gate = grad_hidden * up * act'(gate)
    grad_up   = grad_hidden * act(gate)

All matrices are (tokens, neurons); arithmetic is float32, outputs are rounded once. Outputs are always fresh:
nothing is written into tensors that autograd may have saved. Statistics are in glu_stats.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from slamkern.kernels import ACTIVATIONS, launch
from slamkern.kernels.activations import activate, activate_with_slope

_BLOCK_T = 4  # loads of 16 bytes in flight a thread and matrix


@triton.jit(do_not_specialize=["tokens"])
def swiglu_kernel(
    gate_ptr, up_ptr, hidden_ptr, tokens, neurons, gate_stride, up_stride, hidden_stride,
    ACTIVATION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns BLOCK_T rows of one strip of BLOCK_N columns; neighbors own neighboring strips of the same rows.
    strips = tl.cdiv(neurons, BLOCK_N)
    program = tl.program_id(0)
    rows = (program // strips).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = (program % strips) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < neurons)[None, :]
    gate = tl.load(gate_ptr + rows[:, None] * gate_stride + columns[None, :], inside, other=0.0)
    hidden = activate(gate.to(tl.float32), ACTIVATION, gate.dtype == tl.float32)
    if up_ptr is not None:
        hidden *= tl.load(up_ptr + rows[:, None] * up_stride + columns[None, :], inside, other=0.0).to(tl.float32)
    to = hidden_ptr + rows[:, None] * hidden_stride + columns[None, :]
    tl.store(to, hidden.to(hidden_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["tokens"])
def swiglu_backward_kernel(
    grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr, hidden_ptr,
    tokens, neurons, grad_stride, gate_stride, up_stride, out_stride,
    ACTIVATION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A program owns the same tile of every matrix.
    strips = tl.cdiv(neurons, BLOCK_N)
    program = tl.program_id(0)
    rows = (program // strips).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = (program % strips) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < tokens)[:, None] & (columns < neurons)[None, :]
    grad = tl.load(grad_ptr + rows[:, None] * grad_stride + columns[None, :], inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + rows[:, None] * gate_stride + columns[None, :], inside, other=0.0)
    activated, slope = activate_with_slope(gate.to(tl.float32), ACTIVATION, gate.dtype == tl.float32)
    out = rows[:, None] * out_stride + columns[None, :]
    hidden = activated
    grad_activated = grad
    if up_ptr is not None:
        up = tl.load(up_ptr + rows[:, None] * up_stride + columns[None, :], inside, other=0.0).to(tl.float32)
        hidden = activated * up
        grad_activated = grad * up
        tl.store(grad_up_ptr + out, (grad * activated).to(grad_up_ptr.dtype.element_ty), inside)
    if grad_gate_ptr is not None:
        tl.store(grad_gate_ptr + out, (grad_activated * slope).to(grad_gate_ptr.dtype.element_ty), inside)
    if hidden_ptr is not None:
        tl.store(hidden_ptr + out, hidden.to(hidden_ptr.dtype.element_ty), inside)


def swiglu(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """``act_fn(gate) * up``, or ``act_fn(gate)`` where ``up`` is None: (tokens, neurons) of gate's dtype."""
    _check(gate, up, activation)
    hidden = launch.fresh(gate)
    tokens, neurons = gate.shape
    if hidden.numel() == 0:
        return hidden

    tile = launch.strip(neurons, gate.element_size(), _BLOCK_T, max_warps=4)
    with launch.on(gate.device):
        swiglu_kernel[_grid(gate, tile)](
            gate, up, hidden, tokens, neurons, gate.stride(0), _stride(up), hidden.stride(0),
            ACTIVATION=activation, BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
        )  # fmt: skip
    return hidden


def swiglu_backward(
    grad_hidden: Tensor, gate: Tensor, up: Tensor | None, activation: str, need_hidden: bool, need_gate: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``grad_gate`` unless declined, ``grad_up`` (None without ``up``) and, on request, ``hidden`` again; all fresh.

    Row strides may be anything, 0 included (the gradient of a sum over rows).
    """
    _check(gate, up, activation)
    launch.check_like("grad_hidden", grad_hidden, gate)
    grad_gate = launch.fresh(gate) if need_gate else None
    grad_up = None if up is None else launch.fresh(gate)
    hidden = launch.fresh(gate) if need_hidden else None
    tokens, neurons = gate.shape
    if gate.numel() == 0:
        return grad_gate, grad_up, hidden

    tile = launch.strip(neurons, gate.element_size(), _BLOCK_T, max_warps=4)
    with launch.on(gate.device):
        swiglu_backward_kernel[_grid(gate, tile)](
            grad_hidden, gate, up, grad_gate, grad_up, hidden,
            tokens, neurons, grad_hidden.stride(0), gate.stride(0), _stride(up), neurons,
            ACTIVATION=activation, BLOCK_T=tile.block_t, BLOCK_N=tile.block_n, num_warps=tile.num_warps,
        )  # fmt: skip
    return grad_gate, grad_up, hidden


def _grid(gate: Tensor, tile: launch.Strip) -> tuple[int]:
    tokens, neurons = gate.shape
    return (launch.ceil_div(tokens, tile.block_t) * launch.ceil_div(neurons, tile.block_n),)


def _check(gate: Tensor, up: Tensor | None, activation: str) -> None:
    launch.check_rows("gate", gate)
    launch.check_choice("activation", activation, ACTIVATIONS)
    if up is not None:
        launch.check_like("up", up, gate)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
