"""Records of text (dataclasses all of whose fields are strings), as many as there are, in an Arrow table."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from slamkern.data.arrow_table import BATCH, ArrowTable, in_batches
from slamkern.data.rows import Rows

T = TypeVar("T")


class RecordTable(Rows[T]):
    """Records of the class ``kind``, which are made when they are asked for."""

    def __init__(self, kind: type[T], table: ArrowTable, order: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        self._kind, self._table, self._order = kind, table, order

    @classmethod
    def collect(cls, kind: type[T], records: Iterable[T]) -> "RecordTable[T]":
        """All of ``records``, in their order; they are taken one by one."""
        schema = pa.schema([(field.name, pa.string()) for field in fields(kind)])  # type: ignore[arg-type]
        table = ArrowTable.collect(in_batches((vars(record) for record in records), schema), schema)
        return cls(kind, table, np.arange(table.rows))

    def select(self, indices: "Sequence[int] | np.ndarray[Any, Any]") -> "RecordTable[T]":
        """Those at ``indices``, in this order, without a copy."""
        return RecordTable(self._kind, self._table, self._order[np.asarray(indices, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._order)

    def row(self, index: int) -> T:
        batch, place = self._table.locate(int(self._order[index]))
        return self._kind(**{name: batch.column(name)[place].as_py() for name in batch.schema.names})

    def __iter__(self) -> Iterator[T]:
        for number, rows in groupby(self._order, key=lambda row: row // BATCH):
            self._table.release()
            batch, _ = self._table.locate(int(number) * BATCH)
            for values in batch.take(pa.array([row % BATCH for row in rows])).to_pylist():
                yield self._kind(**values)
