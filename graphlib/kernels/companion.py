"""A second process that compiles along: numba compiles one function at a time in a process.

It is forked, so it has the kernels as they are; what it compiles reaches the first process
through the cache on disk.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORTH_A_PROCESS = 6  # jobs; each takes tenths of a second, the fork hundredths


class Shares:
    """How far two processes have come in one list of jobs, from its front and from its back."""

    def __init__(self, n_jobs: int) -> None:
        # Jobs begun at the front, and those not begun at the back; each has one writer.
        self._ends = memoryview(mmap.mmap(-1, 16)).cast("q")
        self._ends[1] = self._n_jobs = n_jobs

    @property
    def begun(self) -> int:
        """Jobs that either process has begun."""
        return self._ends[0] + self._n_jobs - self._ends[1]

    def take_first(self, job: int) -> bool:
        """Whether the process at the front, which has come to `job`, is to do it."""
        self._ends[0] = job + 1
        return job < self._ends[1]

    def take_last(self) -> int | None:
        """The next job of the process at the back."""
        job = self._ends[1] = self._ends[1] - 1
        return job if job >= self._ends[0] else None


@contextmanager
def companion(n_jobs: int, do: Callable[[int], object]) -> Iterator[Shares]:
    """Within it, a forked process does the jobs from the last one down.

    The caller does those from the first one up that it may `take_first`. The others were begun
    over there: behind the context they are done, or failed, or were given up where the two met.
    A job must be one that leaves its result on disk, and may be done twice.
    """
    shares = Shares(n_jobs)
    child = _fork() if n_jobs >= WORTH_A_PROCESS else None
    if child == 0:
        _work(shares, do)
    try:
        yield shares
        if child:
            os.waitpid(child, 0)
            child = None
    finally:
        if child:  # an error or Ctrl-C: files are replaced whole, so it may end at any time
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _fork() -> int | None:
    """As `os.fork`; None where there is none, or nothing to gain."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        return None
    with warnings.catch_warnings():
        # Python warns of locks that other threads hold. Compiling takes none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return os.fork()
        except OSError:  # no memory or no processes left
            return None


def _work(shares: Shares, do: Callable[[int], object]) -> None:
    """The life of the forked process. It says nothing: the first one meets the same errors."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        parent = os.getppid()
        while os.getppid() == parent and (job := shares.take_last()) is not None:
            do(job)
    finally:
        os._exit(0)
