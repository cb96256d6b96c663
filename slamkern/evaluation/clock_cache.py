"""A cache of keys and values in which all rows write into the same column at the same time.

Each layer holds ``keys`` and ``values`` of (rows, heads, columns, width), allocated once. The column to write next is
the clock; a row begins at a column of its own, which its owner remembers and masks what lies before. A row enters by a
copy that ends at the clock and leaves by being overwritten. What a layer hands to attention is a view of the live rows
from the first column that any of them uses, so nothing is copied from step to step.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


@dataclass
class Clock:
    """Which part of the cache is in use: the first ``rows`` rows, columns from ``first`` to before ``now``."""

    rows: int = 0
    first: int = 0
    now: int = 0


class ClockLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, columns, width) each."""

    is_sliding = False

    def __init__(self, clock: Clock, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.clock, self.keys, self.values = clock, keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("a layer is allocated when it is made")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token of every live row, (rows, heads, 1, width); return what the live rows remember."""
        rows, first, now = self.clock.rows, self.clock.first, self.clock.now
        for memory, states in ((self.keys, key_states), (self.values, value_states)):
            memory[:rows, :, now : now + 1] = states
        return self.keys[:rows, :, first : now + 1], self.values[:rows, :, first : now + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.clock.now - self.clock.first

    def get_max_length(self) -> int:
        return -1


class ClockCache(Cache):
    """The layers of a model on one clock, shaped like those of ``example``, which holds any text."""

    def __init__(self, example: DynamicCache, rows: int, columns: int) -> None:
        self.clock, self.columns = Clock(), columns
        super().__init__(
            layers=[
                ClockLayer(self.clock, *(_room(states, rows, columns) for states in (layer.keys, layer.values)))
                for layer in example.layers
            ]
        )

    def put(self, texts: DynamicCache, text: int, length: int, row: int) -> None:
        """Copy the first ``length`` columns of row ``text`` of ``texts`` to ``row``, to end at the clock."""
        now = self.clock.now
        for layer, source in zip(self.layers, texts.layers, strict=True):
            layer.keys[row, :, now - length : now] = source.keys[text, :, :length]
            layer.values[row, :, now - length : now] = source.values[text, :, :length]

    def move_row(self, source: int, target: int) -> None:
        """Row ``source`` replaces row ``target``."""
        used = slice(self.clock.first, self.clock.now)
        for layer in self.layers:
            layer.keys[target, :, used] = layer.keys[source, :, used]
            layer.values[target, :, used] = layer.values[source, :, used]

    def move_to_front(self) -> int:
        """Move the columns in use to the front, to make room behind them; returns by how many columns."""
        rows, first, now = self.clock.rows, self.clock.first, self.clock.now
        for layer in self.layers:
            for memory in (layer.keys, layer.values):
                memory[:rows, :, : now - first] = memory[:rows, :, first:now].clone()  # the two may overlap
        self.clock.first, self.clock.now = 0, now - first
        return first


def _room(states: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros, not whatever was in memory: a hidden column must not hold NaN."""
    _, heads, _, width = states.shape
    return states.new_zeros(rows, heads, columns, width)
