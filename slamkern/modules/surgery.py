"""Extending the class of one module instance, and giving it its own class back.

A mixin's forward takes the place of the instance's; parameters, buffers, children and hooks stay where they are, and
so does every other instance of the class.
"""

import functools
from typing import Any

from torch import nn


class Extended(nn.Module):
    """Base of the mixins: marks a module whose class was extended; ``super().forward`` in a mixin is its own."""


@functools.cache  # one class for all instances, so that what was compiled for one layer serves the next
def _extended(mixin: type[Extended], own: type[nn.Module]) -> type[nn.Module]:
    return type(f"Fused{own.__name__}", (mixin, own), {"__module__": own.__module__})


def extend(module: nn.Module, mixin: type[Extended], **attributes: Any) -> None:
    """Mix ``mixin`` into the class of this one instance and set ``attributes`` on it."""
    module.__class__ = _extended(mixin, type(module))  # type: ignore[arg-type]  # modules hash by identity
    for name, value in attributes.items():
        setattr(module, name, value)


def restore(module: Extended, *attributes: str) -> None:
    """Undo :func:`extend`: the instance's own class, without the attributes."""
    module.__class__ = type(module).__bases__[1]
    for name in attributes:
        delattr(module, name)
