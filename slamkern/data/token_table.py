"""Training examples as rows of an Arrow table: made once, kept for the next run where they are many.

A row holds all tokens of a pair and how many of them are its prompt. What does not depend on a recipe is stored and
nothing else: how long an example may be is decided when the table is read.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from slamkern.data.arrow_table import ArrowTable, cache_folder, write_batches
from slamkern.data.packing import IGNORE, Example
from slamkern.data.rows import Rows
from slamkern.errors import SlamkernError
from slamkern.files import atomic_write, read_checked, write_checked

log = logging.getLogger(__name__)

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("prompt", pa.int32()), ("language", pa.string())])
Batches = Callable[[], Iterable[pa.RecordBatch]]


def token_batch(input_ids: list[list[int]], prompt: list[int], language: list[str]) -> pa.RecordBatch:
    """Rows of the table: all tokens, how many are the prompt's, the language that is translated from."""
    columns = [pa.array(values, kind.type) for values, kind in zip((input_ids, prompt, language), SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class TokenTable(Rows[Example]):
    """The examples of at most ``max_length`` tokens.

    ``lengths``, ``supervised``: tokens of each, and how many have a loss, int64. ``dropped``: how many of each language
    are longer. ``digest``: SHA-256 of every token of the table, those of dropped examples too.
    """

    def __init__(self, table: ArrowTable, max_length: int, digest: str | None = None) -> None:
        """digest: where it is known."""
        self._table, self._digest = table, digest
        rows = [
            (batch.column("input_ids").value_lengths().to_numpy(), batch.column("prompt").to_numpy())
            for batch in table.scan()
        ]
        lengths = np.concatenate([[], *(row[0] for row in rows)]).astype(np.int64)
        prompts = np.concatenate([[], *(row[1] for row in rows)]).astype(np.int64)
        self._rows = np.flatnonzero(lengths <= max_length)
        self.lengths = lengths[self._rows]
        self.supervised = self.lengths - np.maximum(prompts[self._rows], 1)  # a first token never has a label
        longer = (table.locate(int(row)) for row in np.flatnonzero(lengths > max_length))
        self.dropped = Counter(batch.column("language")[place].as_py() for batch, place in longer)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Example:
        batch, place = self._table.locate(int(self._rows[index]))
        ids = tuple(batch.column(0)[place].values.to_numpy().tolist())
        prompt = batch.column(1)[place].as_py()
        return Example(ids, (IGNORE,) * prompt + ids[prompt:])

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = _digest(self._table)
        return self._digest


def cached_table(key: str, batches: Batches, max_length: int) -> TokenTable:
    """The examples that ``batches`` makes, from the cache where they were made before under this ``key``.

    One process makes them while others wait. A file that is not what was written is made again, which is logged.
    """
    path = cache_folder() / f"tokens-{key}.arrow"
    with FileLock(f"{path}.lock"):
        examples = _read(path, max_length)
        if examples is None:
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                write_batches(file, batches(), SCHEMA)
            with open(path, "rb") as file:
                examples = TokenTable(ArrowTable.mapped(file), max_length)
                record = {"file": hashlib.file_digest(file, "sha256").hexdigest(), "tokens": examples.digest}
            write_checked(path.with_suffix(".json"), record)
        log.info("tokens of %d pairs: %s", len(examples), path)
        return examples


def _read(path: Path, max_length: int) -> TokenTable | None:
    """None where there is no file, or one that is cut off, changed, or without its record."""
    if not path.exists():
        return None
    try:
        record = read_checked(path.with_suffix(".json"))
    except SlamkernError:
        record = {}
    with open(path, "rb") as file:
        if record.get("file") == hashlib.file_digest(file, "sha256").hexdigest():
            return TokenTable(ArrowTable.mapped(file), max_length, record["tokens"])
    log.warning("%s is damaged; the pairs are tokenized again", path)
    return None


def _digest(table: ArrowTable) -> str:
    digest = hashlib.sha256()
    for part in _parts(table):
        digest.update(np.ascontiguousarray(part, dtype=np.int32).data)
    return digest.hexdigest()


def _parts(table: ArrowTable) -> Iterator[Any]:
    for batch in table.scan():
        yield batch.column("input_ids").value_lengths().to_numpy()
        yield batch.column("prompt").to_numpy()
        yield batch.column("input_ids").flatten().to_numpy()
