"""Ctrl-C that waits while something runs that must not be cut into."""

from __future__ import annotations

# Not `signal`, which looks handlers up among names at each call: that takes ten microseconds.
import _signal as signal  # type: ignore[import-not-found]
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_deferred(hurry: Callable[[], object] = lambda: None) -> Iterator[None]:
    """What Ctrl-C raises within it, by the handler that was set before, is raised behind it.

    Numba compiles in frames of its own and in callbacks of C code: an interrupt there ends in a
    traceback of theirs, is lost, or is taken for a kernel that does not compile. Who waits for
    threads has to know of each whether it is through.

    Outside the main thread, where Python delivers no signals, it changes nothing.

    Args:
        hurry: called when there is something to raise; it should let what runs end soon.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    raised: list[BaseException] = []

    def note(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except BaseException as interruption:  # noqa: BLE001 - raised again below
            raised.append(interruption)
            hurry()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if raised:
            raise raised[0]
