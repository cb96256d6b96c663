"""Weights that are numbers: NaN and infinity are named before anything is made of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slamkern.errors import SlamkernError


def check_finite(tensors: Mapping[str, Tensor], otherwise: str) -> None:
    """SlamkernError, with what to do, where a tensor holds infinity or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SlamkernError(f"{name} holds values that are not finite; {otherwise}")
