"""Signals. At the end of a step: the first asks the loop to stop where it can be resumed, the second is immediate.

Elsewhere they end what runs at once. Ctrl-C (SIGINT), a scheduler's notice (SIGTERM) and a closed terminal (SIGHUP) are
answered alike, each with its status.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block with SystemExit (143, 129), so that what it holds is let go of, as at Ctrl-C.

    In the main thread, to which signals belong. A caller's own handler stays, and so does a signal that is ignored
    (SIGHUP under nohup).
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    ends = [number for number in SIGNALS if main and number != signal.SIGINT]
    taken = [number for number in ends if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class GracefulInterrupt:
    """Context manager; ``requested`` turns True at the first signal. The handlers of before are back afterwards.

    A request that the block did not answer is raised at its end: none is lost.

    Signals belong to the main thread: in any other, nothing is installed. Where a signal is ignored (SIGHUP under
    nohup) it stays so.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signal = signal.SIGINT
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "GracefulInterrupt":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:
            raise self.error("interrupted after the last step")

    def error(self, message: str) -> BaseException:
        """What to raise for the signal: KeyboardInterrupt, or SystemExit with its status (143 or 129)."""
        if self._signal == signal.SIGINT:
            return KeyboardInterrupt(message)
        error = SystemExit(128 + self._signal)
        error.add_note(message)
        return error

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requested, self._signal = True, signal.Signals(number)
        for each in self._previous:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
