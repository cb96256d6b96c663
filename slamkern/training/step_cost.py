"""What a training step costs, counted, not timed: FLOPs, bytes kept for the backward, bytes allocated at the peak.

Counts do not depend on the machine, so a step can be held against the minimum (see ``Dimensions``).
Attention counts whole score matrices (causal ones are not halved): forward 2 products of (n, n, head size), backward 5,
because flash attention keeps no scores. Element-wise work is not counted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_FORWARD, _BACKWARD = 2, 5  # products of (n, n, head size) in attention


def _attention_flops(query: Any, products: int, squares: int) -> int:
    """query: (..., heads, n, head size) or packed (n, heads, head size); squares: sum of n^2 over the sequences."""
    heads, size = (query[-3], query[-1]) if len(query) == 4 else (query[1], query[2])
    return 2 * products * squares * heads * size


def _dense(products: int, position: int) -> Callable[..., int]:
    """Formula of an attention whose query (batch, heads, n, head size) is argument ``position``."""

    def formula(*shapes: Any, **_: Any) -> int:
        query, key = shapes[position], shapes[position + 1]
        return query[0] * _attention_flops(query, products, query[-2] * key[-2])

    return formula


def _packed(products: int, position: int, borders: int) -> Callable[..., int]:
    """The same of a packed query (T, heads, head size); argument ``borders`` is cu_seq_lens."""

    def formula(*args: Any, **_: Any) -> int:
        squares = int(args[borders].diff().long().square().sum())
        return _attention_flops(args[position].shape, products, squares)

    formula._get_raw = True  # type: ignore[attr-defined]  # FlopCounterMode's sign for: tensors, not shapes
    return formula


def flop_counter() -> FlopCounterMode:
    """A context that counts; ``get_total_flops()`` afterwards. Knows the attention kernels that torch leaves out."""
    import torch.nn.attention.varlen  # registers torch_attn

    aten, packed = torch.ops.aten, torch.ops.torch_attn
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _dense(_FORWARD, 0),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _dense(_BACKWARD, 1),
        packed._varlen_attn: _packed(_FORWARD, 0, 3),
        packed._varlen_attn_backward: _packed(_BACKWARD, 1, 6),
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


@dataclass(frozen=True)
class Dimensions:
    """A Llama-like decoder: what the minimum cost of a step follows from. ``heads_width`` = heads x head size."""

    hidden: int
    neurons: int
    layers: int
    heads: int
    heads_width: int
    key_value_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Dimensions":
        """From a transformers configuration."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            neurons=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            heads_width=config.num_attention_heads * size,
            key_value_width=(config.num_key_value_heads or config.num_attention_heads) * size,
            vocabulary=config.vocab_size,
        )

    def minimum_flops(self, lengths: Sequence[int], supervised: int, trained: Sequence[int]) -> int:
        """Of one step on sequences of these lengths that trains up and down of the layers ``trained``.

        One forward, with logits and the last layer's FFN for the ``supervised`` rows only; the gradient of the input of
        everything above the FFN of the lowest trained layer; in that FFN the gradient of its neurons; two weight
        gradients a trained layer.
        """
        tokens, last = sum(lengths), self.layers - 1
        ffn_tokens = [tokens] * last + [supervised]
        one_projection = 2 * self.hidden * self.neurons  # of a token
        attention_projections = 4 * tokens * self.hidden * (self.heads_width + self.key_value_width)
        squares = sum(length * length for length in lengths)
        score_product = 2 * squares * self.heads_width
        head = 2 * supervised * self.hidden * self.vocabulary
        lowest = min(trained)
        forward = self.layers * (attention_projections + _FORWARD * score_product) + head
        input_gradients = (last - lowest) * (attention_projections + _BACKWARD * score_product) + head
        ffns = 3 * sum(ffn_tokens) + 3 * sum(ffn_tokens[lowest + 1 :]) + ffn_tokens[lowest]
        ffns += 2 * sum(ffn_tokens[layer] for layer in trained)
        return forward + input_gradients + ffns * one_projection


class SavedBytes:
    """Bytes that autograd keeps for the backward, by the module that was running; parameters and buffers excluded.

    A storage counts once, for the module that kept it first. What a Linear or an activation keeps counts for the module
    it is in: a hook on one keeps slamkern from fusing it. Use as a context around the forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.by_module: dict[str, int] = {}
        self._names = {
            module: name
            for name, module in model.named_modules()
            if not isinstance(module, nn.Linear) and any(True for _ in module.parameters())
        }
        tensors = (*model.parameters(), *model.buffers())
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._kept: list[Tensor] = []  # storages must live on, or their addresses would be used again
        self._running: list[str] = [""]
        self._exits: list[Any] = []

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._kept.append(tensor.detach())
            name = self._running[-1]
            self.by_module[name] = self.by_module.get(name, 0) + storage.nbytes()
        return tensor

    def __enter__(self) -> "SavedBytes":
        for module, name in self._names.items():
            before = module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name))
            after = module.register_forward_hook(lambda *_: (self._running.pop(), None)[1], always_call=True)
            self._exits += [before, after]
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)
        for handle in self._exits:
            handle.remove()
        self._kept.clear()

    def of(self, prefix: str) -> int:
        """Bytes kept by a module and everything in it."""
        return sum(n for name, n in self.by_module.items() if f"{name}.".startswith(f"{prefix}."))


@contextmanager
def peak_growth(device: torch.device) -> Iterator[list[int]]:
    """Yields a list that afterwards holds how many bytes torch had allocated at most beyond those at the start.

    On a CPU it is read off the profiler's record of every allocation, which slows the block down a little.
    """
    grown: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield grown
        grown.append(torch.cuda.max_memory_allocated(device) - before)
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield grown
    record: Any = profile.profiler
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    grown.append(peak)


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
