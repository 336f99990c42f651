"""Ctrl-C that waits while something runs that must not be cut into."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Within it a Ctrl-C is noted; behind it the handler that was set before gets it.

    Numba compiles in frames of its own and in callbacks of C code: an interrupt there ends in a
    traceback of theirs, is lost, or is taken for a kernel that does not compile.

    Outside the main thread, where Python delivers no signals, it changes nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    noted: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for number, frame in noted:
            before(number, frame)
