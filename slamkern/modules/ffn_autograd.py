"""The gated FFN as one autograd Function: what it saves and computes follows from ``needs_input_grad`` alone.

``x: (tokens, hidden_size)``, ``w_gate, w_up: (neurons, hidden_size)``, ``w_down: (hidden_size, neurons)``::

    gate = x @ w_gate.T    up = x @ w_up.T    h = act_fn(gate) * up    y = h @ w_down.T

=====================  =============================  ==========================================
trained                saved for backward             GEMMs of the backward
=====================  =============================  ==========================================
nothing (frozen)       gate, up                       dh, two for dx
up, down               x, gate, up                    dh, two for dx, dw_up, dw_down
the same, no dx        x, gate, up                    dh, dw_up, dw_down
down, no dx            h                              dw_down
some neurons           x, gate, up                    dh, two for dx, those rows and columns of dw
the same, no dx        x, gate and up of those        the same three, of those neurons only
=====================  =============================  ==========================================

With ``recompute`` only ``x`` is saved and gate and up are computed again: one more pair of GEMMs.
``h`` is never saved beside gate and up: the backward kernel makes it again while it reads them.
A frozen weight may be in FP8 (fp8_linear.py): what is saved stays the same. Beside trained neurons none is.

Statistics, where asked for, are merged into a recording on the way; nothing that is saved changes by it, so
checkpointing sees the same forward twice. Not here: the choice of which FFN runs through this (ffn.py).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from slamkern.modules.fp8_linear import FP8Weight, Weight, input_gradient, project
from slamkern.modules.trained_neurons import put
from slamkern.ops import glu
from slamkern.ops.moments import Recording
from slamkern.ops.once import once_differentiable


class FFNOptions(NamedTuple):
    """What is not a tensor: activation, backend of the ops, whether to recompute gate and up, what to record."""

    activation: str
    backend: str
    recompute: bool = False
    recording: Recording | None = None


class GatedFFN(torch.autograd.Function):
    """``y = (act_fn(x @ w_gate.T + b_gate) * (x @ w_up.T + b_up)) @ w_down.T + b_down``; x is (tokens, hidden_size).

    ``up_rows`` (selected, hidden_size) and ``down_columns`` (hidden_size, selected) stand for rows of ``w_up`` and
    columns of ``w_down``, which already hold their values: they only receive the gradient of those ``neurons``
    (selected,) int64. By the backward the weights may hold others: of a later forward (``functional_call``), or
    gathered anew (FSDP2). So it puts those of its own forward into them again, where it reads them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_gate: Weight,
        w_up: Weight,
        w_down: Weight,
        b_gate: Tensor | None,
        b_up: Tensor | None,
        b_down: Tensor | None,
        up_rows: Tensor | None,
        down_columns: Tensor | None,
        neurons: Tensor | None,
        options: FFNOptions,
    ) -> Tensor:
        gate, up = project(x, (w_gate, b_gate), (w_up, b_up))
        hidden = glu.combine(gate, up, options.activation, options.backend, options.recording)
        (y,) = project(hidden, (w_down, b_down))

        need_dx, dw_gate, dw_up, dw_down, db_gate, db_up, _, d_rows, d_columns, *_ = ctx.needs_input_grad
        # Whether the backward reads gate and up of every neuron, or of the trained neurons alone.
        every = need_dx or dw_gate or dw_up or db_gate or db_up
        some = (d_rows or d_columns) and not (every or dw_down)
        if some and neurons is not None:
            gate, up = gate[:, neurons], up[:, neurons]
        recomputed = options.recompute and (every or some)
        keep_projections = (every or some) and not recomputed
        ctx.save_for_backward(
            x if dw_gate or dw_up or d_rows or recomputed else None,
            gate if keep_projections else None,
            up if keep_projections else None,
            hidden if dw_down and not every else None,
            *(None if isinstance(weight, FP8Weight) else weight for weight in (w_gate, w_up, w_down)),
            b_gate,
            b_up,
            up_rows,
            down_columns,
            neurons,
        )
        ctx.options, ctx.every, ctx.some = options, every, some
        ctx.in_fp8 = [weight if isinstance(weight, FP8Weight) else None for weight in (w_gate, w_up, w_down)]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, hidden, *weights, b_gate, b_up, up_rows, down_columns, neurons = ctx.saved_tensors
        w_gate, w_up, w_down = (saved if fp8 is None else fp8 for saved, fp8 in zip(weights, ctx.in_fp8, strict=True))
        options: FFNOptions = ctx.options
        need_dx, need_dw_gate, need_dw_up, need_dw_down, need_db_gate, need_db_up, need_db_down = ctx.needs_input_grad[
            :7
        ]
        need_rows, need_columns = ctx.needs_input_grad[7:9]
        if ctx.every or ctx.some:
            if up_rows is not None:
                put(w_up, 0, neurons, up_rows)
            if down_columns is not None:
                put(w_down, 1, neurons, down_columns)
        dx = dw_gate = dw_up = dw_down = db_gate = db_up = d_rows = d_columns = None
        if ctx.some:
            # The trained neurons are an FFN of their own; nothing else needs a gradient.
            w_down = w_down[:, neurons]
        if ctx.every or ctx.some:
            if gate is None:
                w_gate, w_up, b_gate, b_up = (
                    w[neurons] if ctx.some and w is not None else w for w in (w_gate, w_up, b_gate, b_up)
                )
                gate, up = project(x, (w_gate, b_gate), (w_up, b_up))
            grad_gate, grad_up, hidden = glu.eager_swiglu_backward(
                input_gradient((grad_y, w_down)),
                gate,
                up,
                options.activation,
                need_dw_down or need_columns,
                options.backend,
                need_dx or need_dw_gate or need_db_gate,
            )
            if need_dx:
                dx = input_gradient((grad_gate, w_gate), (grad_up, w_up))
            dw_gate = grad_gate.T @ x if need_dw_gate else None
            dw_up = grad_up.T @ x if need_dw_up else None
            db_gate = grad_gate.sum(0) if need_db_gate else None
            db_up = grad_up.sum(0) if need_db_up else None
            if need_rows:  # gathered first: a product of the selected size
                d_rows = (grad_up if ctx.some else grad_up.index_select(1, neurons)).T @ x
            if need_columns:
                d_columns = grad_y.T @ (hidden if ctx.some else hidden.index_select(1, neurons))
        if need_dw_down:
            dw_down = grad_y.T @ hidden
        db_down = grad_y.sum(0) if need_db_down else None
        return dx, dw_gate, dw_up, dw_down, db_gate, db_up, db_down, d_rows, d_columns, None, None
