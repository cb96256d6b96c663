"""How far long work has come: a bar on a terminal, plain lines in a log.

A bar is redrawn in place many times a second; in a file each redrawing is a line of its own. So where standard error is
no terminal, a line is written for every tenth of the work, and after every 30 seconds without one.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, Self, TextIO

from tqdm import tqdm

from slamkern import distributed

SECONDS = 30.0


class Progress(Protocol):
    """The part of tqdm's interface that is used here."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def update(self, n: int = 1) -> Any: ...

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> Any: ...


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str,
    unit: str,
    show: bool = True,
) -> Progress:
    """Show on standard error, in the main process of a job, how many of ``items`` (or of ``total``) are done.

    Iterate over it to count ``items``, or enter it and call ``update()``; ``set_postfix(loss="0.1")`` adds values.
    ``total`` defaults to ``len(items)``; ``initial`` is how many were done before. ``show=False`` writes nothing.
    """
    show = show and distributed.is_main()
    if show and not sys.stderr.isatty():
        return ProgressLines(items, total=total, initial=initial, desc=desc, unit=unit, file=sys.stderr)
    return tqdm(items, total=total, initial=initial, desc=desc, unit=unit, disable=not show)


class ProgressLines:
    """Progress as lines of text: ``train: step 120/400 (30 %), 61 s, loss=0.41``."""

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        initial: int = 0,
        desc: str,
        unit: str,
        file: TextIO,
    ) -> None:
        if total is None and isinstance(items, Sized):
            total = len(items)
        self.total, self.n, self.desc, self.unit = total, initial, desc, unit
        self._items, self._file, self._postfix = items, file, ""
        self._started = self._last_time = time.monotonic()
        self._last_tenth = self._tenth()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self._items or ():
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """Count ``n`` more; writes a line where one is due."""
        self.n += n
        now = time.monotonic()
        if self._tenth() == self._last_tenth and now - self._last_time < SECONDS:
            return
        self._last_tenth, self._last_time = self._tenth(), now
        done = f"{self.n:,}" if not self.total else f"{self.n:,}/{self.total:,} ({100 * self.n // self.total} %)"
        line = f"{self.desc}: {self.unit} {done}, {now - self._started:.0f} s{self._postfix}"
        print(line, file=self._file, flush=True)

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Values for the end of the next line."""
        self._postfix = "".join(f", {name}={value}" for name, value in values.items())

    def _tenth(self) -> int:
        return 10 * self.n // self.total if self.total else 0
