"""Arrow tables of many rows: in memory while they are few, beyond that in a file that is mapped into memory.

Every batch of such a table has ``BATCH`` rows (the last one what is left), so where a row lies is arithmetic. The files
are Arrow streams as ``datasets`` writes them: ``datasets.Dataset.from_file`` reads them too. They lie in its cache
folder (``HF_DATASETS_CACHE``), under ``slamkern``.
"""

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

BATCH = 1000  # rows
IN_MEMORY = 20_000  # rows: tens of megabytes
RELEASE = 4096  # reads: each brings 64 KiB of a file into memory at most


def cache_folder() -> Path:
    """Where files of tables go; created where it is missing."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "slamkern"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class ArrowTable:
    """Record batches of ``BATCH`` rows each, in memory or mapped from a file.

    Pages of a mapped file that were read stay in memory until something else needs it. They are given back every
    ``RELEASE`` reads, so that a pass over a large file does not show as so much memory in use.
    """

    def __init__(self, batches: list[pa.RecordBatch], pages: mmap.mmap | None = None) -> None:
        self.batches, self._pages, self._reads = batches, pages, 0
        self.rows = sum(batch.num_rows for batch in batches)

    @classmethod
    def mapped(cls, file: IO[bytes]) -> "ArrowTable":
        """The table of an open file; the file's name may be gone. OSError or pyarrow.ArrowInvalid for another file."""
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_stream(pa.py_buffer(pages)) as stream:
            return cls(list(stream), pages)

    @classmethod
    def collect(cls, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> "ArrowTable":
        """All of ``batches``; more than ``IN_MEMORY`` rows go to a file without a name, which nothing else can see."""
        kept: list[pa.RecordBatch] = []
        rest = iter(batches)
        for batch in rest:
            kept.append(batch)
            if len(kept) * BATCH > IN_MEMORY:
                with tempfile.TemporaryFile(dir=cache_folder()) as file:
                    write_batches(file, chain(kept, rest), schema)
                    return cls.mapped(file)
        return cls(kept)

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds a row, and its place there."""
        self._reads += 1
        if self._reads % RELEASE == 0:
            self.release()
        return self.batches[row // BATCH], row % BATCH

    def release(self) -> None:
        """Give back the pages that were read; they are read again when they are needed."""
        if self._pages is not None:
            self._pages.madvise(mmap.MADV_DONTNEED)

    def scan(self) -> Iterator[pa.RecordBatch]:
        """The batches one after another, their pages given back."""
        for number, batch in enumerate(self.batches, 1):
            yield batch
            if number % 16 == 0:
                self.release()


def write_batches(file: IO[bytes], batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write an Arrow stream."""
    with pa.ipc.new_stream(file, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    file.flush()


def in_batches(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows as record batches of ``BATCH`` each."""
    buffer: list[dict[str, Any]] = []
    for row in rows:
        buffer.append(row)
        if len(buffer) == BATCH:
            yield pa.RecordBatch.from_pylist(buffer, schema)
            buffer = []
    if buffer:
        yield pa.RecordBatch.from_pylist(buffer, schema)
