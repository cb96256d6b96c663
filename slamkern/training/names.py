"""The names that weights have in the plain model, whatever is wrapped around it or around its modules.

DistributedDataParallel, torch.compile and PEFT put the model into modules of their own, PEFT modules of it as well. A
delta names a weight as the plain model does, so that it fits that one and every wrapped one.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")
# What a module of a model is called inside the one that PEFT puts around it, beside an adapter or a copy of it.
_INSIDE = ("base_layer", "original_module")


def plain_model(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel, torch.compile and PEFT, in any order; any other model itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return plain_model(model.module)
    if "_orig_mod" in model._modules:
        return plain_model(model.get_submodule("_orig_mod"))
    return plain_model(model.get_base_model()) if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def plain_names(model: nn.Module) -> dict[str, str]:
    """Name of each tensor of ``model`` -> its name in the plain model, which has none for what an adapter brought."""
    inner = plain_model(model)
    start = next(path for path, module in model.named_modules() if module is inner)
    adapted = {path for path, module in inner.named_modules(remove_duplicate=False) if {*_INSIDE} & {*module._modules}}
    names: dict[str, str] = {}
    for name, _ in (*inner.named_parameters(remove_duplicate=False), *inner.named_buffers(remove_duplicate=False)):
        path, kept = "", []
        for part in name.split("."):
            if path in adapted and part not in _INSIDE:
                break  # the adapter's own
            if path not in adapted:
                kept.append(part)
            path = f"{path}.{part}".lstrip(".")
        else:
            names[f"{start}.{name}".lstrip(".")] = ".".join(kept)
    return names


def renamed(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """``values`` under other names where ``names`` has some; what follows a name after an @ stays."""
    parts = {name: name.partition("@") for name in values}
    return {"".join((names.get(part[0], part[0]), *part[1:])): values[name] for name, part in parts.items()}
