"""Ctrl-C at the end of a step: the first asks the loop to stop where it can be resumed, the second is immediate."""

import signal
import threading
from types import FrameType
from typing import Any


class GracefulInterrupt:
    """Context manager; ``requested`` turns True at the first SIGINT. The handler of before is back afterwards.

    A request that the block did not answer is raised at its end: no Ctrl-C is lost.

    Signals belong to the main thread: in any other, nothing is installed. Where SIGINT is ignored it stays so.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "GracefulInterrupt":
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if self.requested and kind is None:
            raise KeyboardInterrupt("interrupted after the last step")

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
