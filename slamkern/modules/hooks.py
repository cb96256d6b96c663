"""Whether calling a module does what its forward says and nothing else."""

from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.utils.module_tracker import ModuleTracker


def is_untouched(module: nn.Module) -> bool:
    """Whether calling ``module`` is its forward and nothing else: no hooks, no other forward on this instance."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or "forward" in module.__dict__:
        return False
    # Asked at every forward: without a call unless there is one.
    of_every = (
        _global_forward_hooks or _global_forward_pre_hooks or _global_backward_hooks or _global_backward_pre_hooks
    )
    return not of_every or not _is_every_module_hooked()


def _is_every_module_hooked() -> bool:
    """Whether hooks of every module may change something; those of torch's FlopCounterMode note which one runs."""
    hooks = (_global_forward_hooks, _global_forward_pre_hooks, _global_backward_hooks, _global_backward_pre_hooks)
    found = [hook for each in hooks for hook in each.values()]
    return not all(isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in found)
