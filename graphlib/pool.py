"""Threads that outlive the programs they run, parked while there is nothing to do."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import aligned_bytes
from yupana.graphlib.kernels import serve
from yupana.graphlib.kernels.compiler import function_type
from yupana.graphlib.kernels.deferral import interrupts_deferred

Job = Callable[[int], None]

MOST = 512  # threads of a run
_LOOK_S = 0.1  # a wait that begins just when Ctrl-C comes would not be ended by it
_core = ctypes.CDLL(None).sched_getcpu


class Round:
    """A run that threads enter together in machine code.

    Args:
        entry: address of the loop, called on each thread as (header, thread, threads, scratch).
        header: what it is called with.
        scratch: address of each thread's scratch memory.
        lingers: whether threads keep their cores for a while, to be there for the next round.
    """

    def __init__(self, entry: int, header: int, scratch: Sequence[int], lingers: bool) -> None:
        self.threads = n = len(scratch)
        self._words = np.array([entry, header, n, 0, *scratch, *[0] * n], np.int64)
        self._flags = self._words[serve.ROUND_HEAD + n :]
        self.address = int(self._words.ctypes.data)
        self.looks = serve.LOOKS if lingers else 0

    def parked(self) -> list[int]:
        """The threads that have to be woken for it."""
        return [*map(int, self._flags.nonzero()[0])] if self._words[serve.N_PARKED] else []


class Pool:
    """Persistent threads that enter a job together, each with its number."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin without threads, as after a fork, which they do not survive."""
        self._threads: list[_Thread] = []
        self._boxes = aligned_bytes(8 * serve.BOX_WORDS * MOST).view(np.int64)
        self.__dict__.pop("_lead", None)
        # Two runs at a time must not wait for each other's threads: one hands all out, or none.
        self._lock = threading.Lock()

    def run(self, round_: Round) -> bool:
        """Enter a round as the first of its threads; whether the others were there already.

        Returns when all are through, also where Ctrl-C came: those that are there wait for the
        rest, and nothing could end the next run's wait for them.
        """
        if round_.threads == 1:
            self._lead(round_.address, 0, 0)
            return True
        with interrupts_deferred(), self._lock:
            self._provide(round_.threads - 1)
            try:
                self._lead(round_.address, 0, 0)
            finally:  # also where the handler of another signal raised
                parked = round_.parked()
                for k in parked:
                    self._threads[k - 1].wake(round_.looks)
                if parked:
                    self._lead(round_.address, 1, 0)
        return not parked

    @cached_property
    def _lead(self) -> Callable[[int, int, int], None]:
        return partial(function_type(4)(serve.LEAD.address), int(self._boxes.ctypes.data))

    def run_aside(self, job: Job, n_threads: int, abort: Callable[[], None]) -> None:
        """Call `job(k)` for each k below `n_threads`, so that Ctrl-C reaches the caller at once.

        It then calls `abort`, which must make the job end soon; what Ctrl-C raises is raised when
        all threads are through. So is what a job raises.
        """
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        raised: list[BaseException] = []
        with interrupts_deferred(abort):
            with self._lock:
                self._provide(n_threads)
                for k in range(n_threads):
                    self._threads[k].do(partial(job, k), done)
            waiting = n_threads
            while waiting:
                with suppress(Empty):
                    error = done.get(timeout=_LOOK_S)
                    waiting -= 1
                    raised += [error] if error else []
        if raised:
            raise raised[0]

    def _provide(self, n_threads: int) -> None:
        while len(self._threads) < n_threads:
            k = len(self._threads)
            box = self._boxes[k * serve.BOX_WORDS :][: serve.BOX_WORDS]
            self._threads.append(_Thread(f"yupana-{k + 1}", box))


class _Thread:
    """A thread that does what it is given, one after the other."""

    def __init__(self, name: str, box: NDArray[np.int64]) -> None:
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._box = box
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None], done: SimpleQueue[BaseException | None]) -> None:
        """Do a job, and say so, or what it has raised."""

        def task() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised again by who waits
                done.put(error)
            else:
                done.put(None)

        self._queue.put(task)
        self._box[serve.WANTED] = 1

    def wake(self, looks: int) -> None:
        """Do the rounds that come into the mailbox, the first of them now.

        A thread is often woken on the core that it is woken from, where the system may leave it
        for a long time though another is free. Two that wait for each other there take turns, and
        a round takes thirty times as long.
        """
        number, cores = self._thread.native_id or 0, set[int]()

        def task() -> None:
            with suppress(OSError):
                os.sched_setaffinity(0, cores)
            function_type(4)(serve.SERVE.address)(int(self._box.ctypes.data), looks, 0, 0)

        with suppress(OSError):  # there is no other core, or the system does not let us choose
            cores = os.sched_getaffinity(number)
            os.sched_setaffinity(number, cores - {_core()})
        self._queue.put(task)

    def _work(self) -> None:
        while True:
            self._box[serve.WANTED] = 0
            task = self._queue.get()
            task()
            del task  # a program that nobody holds must not live on in a parked thread


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
        self._was_cold = False
        self._interval = self._FIRST_INTERVAL
        self._runs = 0

    def choose(self) -> int:
        """Threads for the next run."""
        if self._fast == self._slow or self._runs < 2:  # the first runs touch memory, and time it
            return self._fast
        is_try = self._runs == 2 or self._runs % self._interval == 0
        return self._slow if is_try else self._fast

    def record(self, threads: int, seconds: float, is_warm: bool = True) -> None:
        """What a run has taken; where threads had to be woken for it, the next one counts."""
        self._was_cold = not is_warm and not self._was_cold
        if self._was_cold:
            return
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


POOL = Pool()
os.register_at_fork(after_in_child=POOL.forget)
