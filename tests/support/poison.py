"""Memory as a kernel may find it: never zero by chance."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


def poisoned(x: Tensor) -> Tensor:
    """``x`` filled with NaN, or with a large number where there is none."""
    if x.dtype.is_floating_point and x.itemsize == 1:
        x.view(torch.uint8).fill_(0x7F)  # NaN in e4m3 and e5m2
    else:
        x.fill_(float("nan") if x.dtype.is_floating_point else min(2**30, torch.iinfo(x.dtype).max))
    return x


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What torch.empty, empty_like and new_empty give in this block is poisoned."""

    def poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments, **options: poisoned(make(*arguments, **options))

    with ExitStack() as stack:
        owners: tuple[tuple[Any, str], ...] = ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty"))
        for owner, name in owners:
            stack.enter_context(mock.patch.object(owner, name, poisoning(getattr(owner, name))))
        yield
