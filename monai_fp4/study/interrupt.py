"""End a sweep by SIGTERM, which batch systems send, as by Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["interruptible"]


@contextlib.contextmanager
def interruptible() -> Iterator[list[signal.Signals]]:
    """Raise KeyboardInterrupt inside on SIGINT and SIGTERM; a second one ends the process at once.

    The handlers from before are put back at the end. Only the main thread gets signals: in another one nothing is
    changed, and who started the thread has to end it. A signal that is ignored, as the shell has a process in the
    background ignore Ctrl-C, stays so.

    Yields:
        The signal that has come, or nothing. Look there too: Python swallows what is raised within a destructor.
    """
    come: list[signal.Signals] = []
    before: dict[signal.Signals, Any] = {}

    def interrupt(number: int, _frame: FrameType | None) -> None:
        come.append(signal.Signals(number))
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
