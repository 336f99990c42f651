"""Ctrl-C that ends the process at once, for as long as there is nothing to save.

It is set before all else is imported, so this module imports next to nothing.
"""

# What signal is made of, which loads enum as well: milliseconds in which Ctrl-C is a traceback.
import _signal  # type: ignore[import-not-found]
import os

INTERRUPTED = 130  # exit code after Ctrl-C, as shells expect it


def let_ctrl_c_end() -> None:
    """Let Ctrl-C end the process: in the imports, and at the end.

    An exception in the middle of an import comes out of it as a traceback, or not at all. Where the
    caller has Ctrl-C ignored, or a thread gets no signals, everything stays as it is.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        try:
            _signal.signal(_signal.SIGINT, end)
        except ValueError:  # another thread than the main one
            return


def end(number: int, frame: object) -> None:
    """End the process, without a word."""
    os._exit(INTERRUPTED)
