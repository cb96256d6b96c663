"""What a training run leaves as it is, as digests: they tell whether a delta belongs to the weights of a model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slamkern.digests import tensor_digests
from slamkern.selection.trainable import trainable_tensors, trained_parameters

AXES = {"up": 0, "down": 1}  # which dimension of a projection's weight its neurons are


def trained_parts(model: nn.Module) -> dict[str, tuple[int, Tensor] | None]:
    """Name of each weight that is trained -> None for all of it, or (dimension, indices) for single neurons of it."""
    parts: dict[str, tuple[int, Tensor] | None] = dict.fromkeys(trained_parameters(model))
    single = [entry for entry in trainable_tensors(model) if entry.neurons is not None]
    for entry in single:
        del parts[entry.name]
        assert entry.neurons is not None
        parts[entry.name.removesuffix("@neurons")] = AXES[entry.projection], entry.neurons
    return parts


def frozen_digests(model: nn.Module, trained: Mapping[str, tuple[int, Tensor] | None]) -> dict[str, str]:
    """SHA-256 of every tensor of the model's state that is not trained, by name.

    A weight of which single neurons are trained counts, as ``<name>@neurons``, with zeros in their place.
    """
    state = model.state_dict()
    tied = {_address(state[name]) for name, part in trained.items() if part is None and name in state}
    frozen: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = trained.get(name)
        if part is not None:
            dimension, neurons = part
            frozen[f"{name}@neurons"] = tensor.detach().index_fill(dimension, neurons.to(tensor.device), 0)
        elif name not in trained and _address(tensor) not in tied:
            frozen[name] = tensor
    return tensor_digests(frozen)


def _address(tensor: Any) -> int:
    """Where the values are, or this process's part of them."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).data_ptr()


def changed_weight(
    written: Mapping[str, str], now: Mapping[str, str], trained: Mapping[str, tuple[int, Tensor] | None]
) -> str | None:
    """The first weight in which a model differs from the base of a delta that brings the weights ``trained``; or None.

    ``written`` and ``now`` are from :func:`frozen_digests`. A delta made of others may bring more or fewer weights than
    the one whose base was written down: what it brings itself, and neurons that it gave back, cannot be compared.
    """
    for name, digest in written.items():
        weight = name.removesuffix("@neurons")
        if name in now:
            if now[name] != digest:
                return weight
        elif weight == name and weight not in trained:
            return weight
    return None
