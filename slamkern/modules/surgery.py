"""Extending the class of one module instance, and giving it its own class back.

A mixin's forward takes the place of the instance's; parameters, buffers, children and hooks stay where they are, and
so does every other instance of the class. The instance remembers its own class, so that it comes back even where
somebody else (FSDP2, ``torch.nn.utils.parametrize``) has derived a class of theirs from the extended one meanwhile.

An extended module is pickled as its mixin, its own class and its state, and loads extended.
"""

import functools
from typing import Any

import torch
from torch import nn

from slamkern.modules.match import twin_of

_OWN = "slamkern_own_class"


class Extended(nn.Module):
    """Base of the mixins: marks a module whose class was extended; ``super().forward`` in a mixin is its own."""

    slamkern_prefix = "Fused"  # of the name of the extended class

    @classmethod
    def slamkern_members(cls, own: type[nn.Module]) -> dict[str, Any]:
        """Members of the extended class that depend on the own one."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self)
        if vars(kind).get("_slamkern_extended"):
            mixin, own = kind.__bases__
            return _rebuild, (mixin, own), self.__getstate__()
        return super().__reduce_ex__(protocol)


def _rebuild(mixin: type[Extended], own: type[nn.Module]) -> nn.Module:
    kind = _extended(mixin, own)  # type: ignore[arg-type]  # modules hash by identity
    return kind.__new__(kind)


@functools.cache  # one class for all instances, so that what was compiled for one layer serves the next
def _extended(mixin: type[Extended], own: type[nn.Module]) -> type[nn.Module]:
    # The mark is the class's own: of a class that others derive from it, vars() has none.
    body = {"__module__": own.__module__, "_slamkern_extended": True, **mixin.slamkern_members(own)}
    return type(f"{mixin.slamkern_prefix}{own.__name__}", (mixin, own), body)


def is_transformed() -> bool:
    """Whether torch.export or a transform of torch.func sees what runs now; neither knows our autograd Functions."""
    return torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()


def extend(module: nn.Module, mixin: type[Extended], **attributes: Any) -> None:
    """Mix ``mixin`` into the class of this one instance, unless it is there, and set ``attributes`` on it."""
    if not isinstance(module, mixin):
        own = type(module)
        module.__class__ = _extended(mixin, own)  # type: ignore[arg-type]
        module.__dict__[_OWN] = own
    module.__dict__ |= attributes


def unextended(module: Extended) -> nn.Module:
    """A shallow copy of an extended instance, of its own class."""
    return twin_of(module, module.__dict__[_OWN])


def restore(module: nn.Module, *attributes: str) -> None:
    """Undo :func:`extend`: the instance's own class, without the attributes.

    A class that somebody else has derived from the extended one since is derived from the own class instead; one that
    has nothing to do with it is left.
    """
    own = module.__dict__.pop(_OWN)
    module.__class__ = _without(type(module), own)  # type: ignore[arg-type]
    for name in attributes:
        del module.__dict__[name]


@functools.cache
def _without(kind: type, own: type[nn.Module]) -> type:
    """``kind`` without the extension of ``own`` in its bases."""
    if vars(kind).get("_slamkern_extended") and kind.__bases__[1] is own:
        return own
    bases = tuple(_without(base, own) for base in kind.__bases__)  # type: ignore[arg-type]
    if bases == kind.__bases__:
        return kind
    body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, body)
