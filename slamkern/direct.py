"""Calling an op past the dispatcher, where nobody else would see it.

Going through ``torch.ops`` costs 10 to 20 us of host time a call, more than the op itself on a few tokens. It is needed
where something traces, differentiates or intercepts what runs: then it is taken.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def eager_op(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.ops.slamkern.<name>``, or its implementation itself for plain tensors of which no gradient is asked.

    To be called where autograd is not to see the op, as inside an autograd Function, or is off.
    """
    registered = getattr(torch.ops.slamkern, name)

    def run(first: Tensor, *rest: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_unobserved(first):
            return registered(first, *rest)
        return implementation(first, *rest)

    return run


def _is_unobserved(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and not is_in_torch_dispatch_mode()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch.autograd._profiler_enabled()  # a profile lists ops by name
    )
