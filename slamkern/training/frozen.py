"""The base model of a delta as digests: they tell whether it belongs to the weights of a model.

Of what training left as it is, and of what it changed as that was before: a scale, a merge and a layer that is taken
back stand on the latter too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slamkern.digests import tensor_digests
from slamkern.errors import SlamkernError
from slamkern.schemas.training import DeltaMetadata
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


def trained_digests(model: nn.Module, trained: Mapping[str, tuple[int, Tensor] | None]) -> dict[str, str]:
    """SHA-256 of each weight that will be trained, whole, by its name; call it before the first step."""
    state = model.state_dict()
    return tensor_digests({name: state[name] for name in trained if name in state})


def _address(tensor: Any) -> int:
    """Where the values are, or this process's part of them."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).data_ptr()


def changed_weight(
    written: Mapping[str, str], now: Mapping[str, str], trained: Mapping[str, tuple[int, Tensor] | None]
) -> str | None:
    """The first weight in which a model differs from the base of a delta that brings the weights ``trained``; or None.

    ``written`` and ``now`` are from :func:`frozen_digests`, the former with :func:`trained_digests` (deltas of before
    have none). A delta made of others may bring more or fewer weights than the one whose base was written down: what it
    brings itself is compared where ``now`` has it.
    """
    for name, digest in written.items():
        weight = name.removesuffix("@neurons")
        if name in now:
            if now[name] != digest:
                return weight
        elif weight == name and weight not in trained:
            return weight
    return None


def other_base(path: Path, metadata: DeltaMetadata, name: str) -> SlamkernError:
    """The error for a delta and a model that differs from its base in the weight ``name``."""
    return SlamkernError(
        f"{path} was trained on other weights than this model has (first difference: {name});"
        f" load {metadata.base_model or 'its base model'} as it was then"
    )
