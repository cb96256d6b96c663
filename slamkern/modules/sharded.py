"""Tensors of which each process of a job has a part (DTensors of torch), and their whole."""

from typing import Any

from torch import Tensor


def whole(tensor: Any) -> Tensor:
    """The tensor, gathered where this process has a part; every process of the job calls this then."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def part_of(full: Tensor, like: Any) -> Tensor:
    """The part of ``full`` that this process keeps of ``like``; ``full`` itself where that is whole."""
    if not is_part(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    here = full.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def is_part(tensor: object) -> bool:
    """Whether this process has a part of the tensor (a DTensor of torch)."""
    return hasattr(tensor, "full_tensor")
