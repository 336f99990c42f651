"""The log of a run: a JSON line for each step and each look at the validation loss, and its end."""

from __future__ import annotations

import json
import os
import sys
from os import PathLike
from pathlib import Path
from typing import Any

from yupana.train.tensorboard import EventFile

_CURVES = ("loss", "validation", "rate", "norm", "tokens_per_s")


class Log:
    """A file of JSON lines, each with the system when `write` returns; without a path, nothing.

    Args:
        append: keep what is there; else the first line takes its place.
        events: gets what makes a curve as well.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        append: bool = False,
        events: EventFile | None = None,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._mode = "a" if append else "w"
        self._events = events
        self._is_new = True

    def write(self, step: int, **values: Any) -> None:
        """Add one line.

        Raises:
            OSError: the system cannot write.
        """
        if self._path is not None:
            line = json.dumps({"step": step, **values}) + "\n"
            if self._is_new and self._mode == "a" and _ends_within_a_line(self._path):
                line = "\n" + line  # the run before was killed while it wrote
            try:
                with self._path.open(self._mode, encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:  # a full disk is met where the file is closed, without a name
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            self._mode, self._is_new = "a", False
        if self._events is not None:
            self._events.write(step, {k: v for k, v in values.items() if k in _CURVES})

    def end(self, step: int, why: str) -> None:
        """Add how the run ended, if anything was written of it: an older log stays as it is.

        Raises:
            OSError: the system cannot write.
        """
        if not self._is_new:
            self.write(step, end=why)


def peak_bytes() -> int | None:
    """The most memory that this process has had in its life; None where the system cannot tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
