"""Which tasks of a bake-off are taken: in a store that all processes of a job see, or in this one alone."""

import os

import torch.distributed as dist

from slamkern import distributed


class Board:
    """A task is taken once in a job, whether it then succeeds or fails; :attr:`busy` until each taken one has ended."""

    def __init__(self) -> None:
        several = distributed.world_size() > 1
        store = distributed.launchers_store() if several else dist.HashStore()
        # A launcher that starts a job's processes again may keep the store of the time before.
        self._store = dist.PrefixStore(f"slamkern/bakeoff/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._rank = str(distributed.rank())

    def take(self, name: str) -> bool:
        """Take a task, unless it was taken before."""
        if self.taken(name):
            return False
        with distributed.reaching_others():
            self._store.add("taken", 1)  # before it has a name: none may look idle to the others meanwhile
            mine = self._store.add(f"task/{name}", 1) == 1
            if not mine:
                self._store.add("ended", 1)
        return mine

    def end(self, name: str) -> None:
        """Of a task that was taken here, and is done or has failed."""
        with distributed.reaching_others():
            self._store.add("ended", 1)

    def taken(self, name: str) -> bool:
        """Whether any process has taken the task."""
        with distributed.reaching_others():
            return self._store.check([f"task/{name}"])

    @property
    def busy(self) -> bool:
        """Whether any process works on a task."""
        with distributed.reaching_others():
            ended = self._store.add("ended", 0)  # in this order: what ends in between looks busy a moment longer
            return self._store.add("taken", 0) > ended
