"""Threads that outlive the programs they run, parked while there is nothing to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = Callable[[int], None]


class Pool:
    """Persistent threads that enter a job together, each with its number."""

    def __init__(self) -> None:
        self._queues: list[SimpleQueue[tuple[Job, int, SimpleQueue[int]]]] = []
        self._pid = os.getpid()

    def run(self, job: Job, n_threads: int) -> None:
        """Call `job(k)` for each k below `n_threads`, the first on the calling thread."""
        if n_threads > 1:
            done: SimpleQueue[int] = SimpleQueue()
            self._start(job, range(1, n_threads), done)
        job(0)  # returns when all are through: the threads meet at the end of a program

    def run_aside(self, job: Job, n_threads: int, abort: Callable[[], None]) -> None:
        """As `run`, but the calling thread only waits, so that Ctrl-C reaches it at once.

        On an exception such as KeyboardInterrupt it calls `abort`, which must make the job end
        soon, and raises the exception when all threads are through.
        """
        done: SimpleQueue[int] = SimpleQueue()
        self._start(job, range(n_threads), done)
        waiting = n_threads
        interruption: BaseException | None = None
        while waiting:
            try:
                done.get()
                waiting -= 1
            except BaseException as stop:  # noqa: BLE001 - raised again when all are through
                interruption = stop
                abort()
        if interruption is not None:
            raise interruption

    def _start(self, job: Job, numbers: range, done: SimpleQueue[int]) -> None:
        if self._pid != os.getpid():  # threads do not survive a fork
            self._queues, self._pid = [], os.getpid()
        while len(self._queues) < len(numbers):
            queue: SimpleQueue[Any] = SimpleQueue()
            self._queues.append(queue)
            name = f"yupana-{len(self._queues)}"
            threading.Thread(target=_work, args=(queue,), name=name, daemon=True).start()
        for queue, number in zip(self._queues, numbers, strict=False):
            queue.put((job, number, done))


class Pace:
    """Chooses from run to run between several threads and one: what took less time of late.

    On a core that other processes want too, a second thread can cost more than it brings. Any
    number of threads gives the same bits, so the choice is free; the slower way is tried again
    now and then, the more rarely the longer it has been the slower one.

    >>> pace = Pace(2)
    >>> for _ in range(9):
    ...     threads = pace.choose()
    ...     pace.record(threads, 3.0 if threads == 2 else 1.0)  # as on a busy machine
    >>> pace.choose()
    1
    """

    _FIRST_INTERVAL, _LAST_INTERVAL = 8, 512  # runs between tries of the slower way

    def __init__(self, most: int, least: int = 1) -> None:
        self._seconds: dict[int, float] = {}
        self._fast, self._slow = most, min(least, most)
        self._interval = self._FIRST_INTERVAL
        self._runs = 0

    def choose(self) -> int:
        """Threads for the next run."""
        if self._fast == self._slow or self._runs < 2:  # the first runs touch memory, and time it
            return self._fast
        is_try = self._runs == 2 or self._runs % self._interval == 0
        return self._slow if is_try else self._fast

    def record(self, threads: int, seconds: float) -> None:
        """What a run has taken."""
        self._runs += 1
        if self._runs == 1:
            return
        before = self._seconds.get(threads, seconds)
        self._seconds[threads] = 0.5 * (before + seconds)
        if threads != self._slow or self._slow == self._fast or len(self._seconds) < 2:
            return
        if self._seconds[self._slow] < self._seconds[self._fast]:
            self._fast, self._slow = self._slow, self._fast
            self._interval = self._FIRST_INTERVAL
        else:
            self._interval = min(2 * self._interval, self._LAST_INTERVAL)


def _work(queue: SimpleQueue[tuple[Job, int, SimpleQueue[int]]]) -> None:
    while True:
        job, number, done = queue.get()
        try:
            job(number)
        finally:
            done.put(number)
            del job  # a program that nobody holds must not live on in a parked thread


POOL = Pool()
