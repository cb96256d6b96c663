"""Items that all processes of a job make, in the main one about as they are made: answers, which it writes down.

They travel through the launcher's store. A process also says there every few seconds that it is alive, from a thread of
its own, for an item may take minutes: a process that is gone is noticed by its silence, before the main one waits for
it in vain. Where all of them were stopped for a while, none is taken for gone.
"""

import pickle
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import torch.distributed as dist

from slamkern import distributed
from slamkern.errors import SlamkernError

T = TypeVar("T")
BEAT = timedelta(seconds=5)
SILENCE = timedelta(minutes=1)
_LOOKS = 4  # in vain, a beat apart, before silence counts: a process that was stopped too needs a moment


def stream_to_main(items: Iterable[T]) -> Iterator[T]:
    """In the main process the items of all processes; in the others none.

    SlamkernError where another is silent for ``SILENCE``, or alive but without an item for ``distributed.TIMEOUT``.
    """
    if distributed.world_size() == 1:
        yield from items
        return
    name = distributed.on_main(lambda: uuid.uuid4().hex)
    store = dist.PrefixStore(name, distributed.launchers_store())
    if not distributed.is_main():
        _send(items, store, name)
        return
    others = _Others(store)
    for item in items:
        yield item
        yield from others.arrived()
        others.look()
    waiting = time.monotonic()
    while others.expected:
        for item in others.arrived():
            waiting = time.monotonic()
            yield item
        others.look()
        if time.monotonic() - waiting > distributed.TIMEOUT.total_seconds():
            raise SlamkernError(
                f"process {min(others.expected)} sent nothing for {distributed.TIMEOUT}; start the job again"
            )
        time.sleep(0.02)


def _send(items: Iterable[Any], store: dist.Store, name: str) -> None:
    with _beating(name):
        for number, sent in enumerate(chain(zip(items, strict=False), [()])):  # (item,) each, and () at the end
            store.set(f"{distributed.rank()}/{number}", pickle.dumps(sent))  # type: ignore[arg-type]  # bytes will do


@contextmanager
def _beating(name: str) -> Iterator[None]:
    """Within the block this process says that it is alive, over a connection of its own."""
    store, rank, done = dist.PrefixStore(name, distributed.launchers_store()), distributed.rank(), threading.Event()

    def beat() -> None:
        while not done.wait(BEAT.total_seconds()):
            try:
                store.add(f"{rank}/beats", 1)
            except RuntimeError:  # the store is gone, and the job with it
                return

    thread = threading.Thread(target=beat, name="slamkern-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Others:
    """The other processes, as the main one sees them."""

    def __init__(self, store: dist.Store) -> None:
        self.expected = dict.fromkeys(range(1, distributed.world_size()), 0)
        """Of those that have not ended, the number of the next item."""
        now = time.monotonic()
        self._store, self._looked = store, now
        self._beats = dict.fromkeys(self.expected, (0, now, 0))  # how many, since when, how often seen unchanged

    def arrived(self) -> Iterator[Any]:
        """What they have sent by now."""
        for other in list(self.expected):
            while self._store.check([key := f"{other}/{self.expected[other]}"]):
                sent = pickle.loads(self._store.get(key))
                self._store.delete_key(key)
                if not sent:
                    del self.expected[other]
                    break
                self.expected[other] += 1
                yield from sent

    def look(self) -> None:
        """Every few seconds: does each one live? SlamkernError for one that does not."""
        now = time.monotonic()
        if now - self._looked < BEAT.total_seconds():
            return
        self._looked = now
        for other in self.expected:
            beats, since, seen = self._beats[other]
            heard = self._store.add(f"{other}/beats", 0)
            self._beats[other] = (heard, now, 0) if heard != beats else (beats, since, seen + 1)
            if heard == beats and now - since > SILENCE.total_seconds() and seen + 1 >= _LOOKS:
                raise SlamkernError(
                    f"process {other} has been silent for {now - since:.0f} seconds: it ended, or its machine did;"
                    " start the job again"
                )
