"""Which ops of torch run in a block, and which of their results have memory of their own."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """``ops``: their names in order; ``results``: addresses of results that are none of an op's arguments."""

    def __init__(self):
        super().__init__()
        self.ops, self.results = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = (*args, *(kwargs or {}).values())
        result = func(*args, **kwargs or {})
        self.ops.append(func.overloadpacket._qualified_op_name)
        known = {tensor.data_ptr() for tensor in given if isinstance(tensor, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.data_ptr() not in known:
            self.results.add(result.data_ptr())
        return result
