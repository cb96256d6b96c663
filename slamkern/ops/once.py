"""Backward passes that cannot be differentiated again."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from slamkern.errors import SlamkernError

Backward = Callable[..., Any]


def once_differentiable(backward: Backward) -> Backward:
    """Of an autograd Function's backward: SlamkernError where its results are to be differentiated.

    torch's own of that name raises only where a second backward passes through; ``torch.autograd.grad`` goes around it
    where the inputs it is asked for are reached otherwise, and gives a gradient without what it left out.
    """

    @functools.wraps(backward)
    def first(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise SlamkernError(
                "what slamkern fuses has no second derivative (create_graph=True); unpatch_model(model) has it"
            )
        return backward(ctx, *grads)

    return first
