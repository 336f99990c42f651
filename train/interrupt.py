"""Ctrl-C that lets a step finish: the first is noted, the second stops at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any

_NOTICE = "finishing this step, then writing the model; Ctrl-C again stops at once"


class CtrlC:
    """A context in which the first Ctrl-C only sets `asked`.

    Outside the main thread, where Python delivers no signals, it changes nothing.

    Args:
        notice: printed when it happens; nothing if empty.
    """

    def __init__(self, notice: str = _NOTICE) -> None:
        self.asked = False
        self._notice = notice
        self._before: Any = None
        self._is_set = False

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._is_set = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_set:
            signal.signal(signal.SIGINT, self._before)
            self._is_set = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self._notice:
            return
        with contextlib.suppress(OSError, RuntimeError):  # a handler may cut into another print
            print(f"\n{self._notice}", file=sys.stderr, flush=True)
