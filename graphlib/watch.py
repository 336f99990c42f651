"""Runs of a program watched: when each thread called which kernel.

The loop is that of `kernels/run.py` with a look at the clock before and after every call, which
adds some 50 ns to each. The clock is Python's `time.perf_counter_ns`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.kernels.compiler import Kernel, function_type
from yupana.graphlib.kernels.pointers import call_kernel, i64_array
from yupana.graphlib.kernels.run import (
    BARRIERS,
    CHUNKS,
    COUNTERS,
    GRAINS,
    HEADER_WORDS,
    KERNELS,
    RECORDS,
    SOLO,
    STEPS,
    SYNC,
    barrier,
    take,
)
from yupana.graphlib.program import Program

# A log is an array of int64: the address of the function that tells the time, the number of
# calls, and for each call its step, then seconds and nanoseconds when it began and when it ended.
_HEAD, _ROW = 2, 5  # words
_MONOTONIC = time.CLOCK_MONOTONIC


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel: of which step, in ns since the run began."""

    step: int
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What each thread did in one run.

    Attributes:
        threads: the calls of each, in order.
        tasks: index of the task of each step.
        meetings: steps before which the threads meet.
    """

    threads: list[list[Call]]
    tasks: list[int]
    meetings: list[int]

    @property
    def ns(self) -> float:
        """From the first call to the end of the last."""
        return max((calls[-1].end for calls in self.threads if calls), default=0.0)


def watch(program: Program, runs: int = 1) -> Watched:
    """Run a program on all its threads and note every call; of several runs the fastest is told.

    The program computes what `run()` computes, as often: optimiser steps in it are taken.

    >>> import yupana as yp
    >>> x = yp.tensor([1.0, 2.0])
    >>> run = watch(yp.Graph(x * x + 1).compile(threads=1))
    >>> [[call.step for call in calls] for calls in run.threads], run.tasks
    ([[0, 1]], [0, 1])
    """
    entry = function_type(5)(_WATCHED.address)
    most = sum(step.chunks for steps in program.steps for step in steps)
    clock = ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0
    logs = [np.zeros(_HEAD + _ROW * most, np.int64) for _ in range(program.threads)]
    addresses = [int(log.ctypes.data) for log in logs]

    def loop(header: int, thread: int, n_threads: int, scratch: int) -> None:
        entry(header, thread, n_threads, scratch, addresses[thread])

    best: list[NDArray[np.int64]] = []
    for _ in range(max(runs, 1)):
        for log in logs:
            log[:_HEAD] = clock, 0
        program.enter(loop, program.threads)
        found = [_calls(log) for log in logs]
        if not best or _length(found) < _length(best):
            best = found
    tasks = [k for k, steps in enumerate(program.steps) for _ in steps]
    zero = min((int(calls[0, 1]) for calls in best if len(calls)), default=0)
    threads = [[Call(int(k), float(b - zero), float(e - zero)) for k, b, e in c] for c in best]
    return Watched(threads, tasks, program.meetings)


def _calls(log: NDArray[np.int64]) -> NDArray[np.int64]:
    """(calls, 3) of one thread: step, begin and end in ns."""
    rows = log[_HEAD : _HEAD + _ROW * int(log[1])].reshape(-1, _ROW)
    seconds, ns = rows[:, 1::2], rows[:, 2::2]
    return np.concatenate([rows[:, :1], seconds * 1_000_000_000 + ns], axis=1)


def _length(found: Sequence[NDArray[np.int64]]) -> int:
    busy = [calls for calls in found if len(calls)]  # a thread may come too late for any work
    if not busy:
        return 0
    return int(max(calls[-1, 2] for calls in busy) - min(calls[0, 1] for calls in busy))


def _watched(header: int, thread: int, n_threads: int, scratch: int, log: int) -> None:
    """Run a program as `kernels.run.run` does, writing down every call."""
    h = i64_array(header, HEADER_WORDS)
    n, sync, counters = h[STEPS], h[SYNC], h[COUNTERS]
    kernels, records = i64_array(h[KERNELS], n), i64_array(h[RECORDS], n)
    chunks, grains = i64_array(h[CHUNKS], n), i64_array(h[GRAINS], n)
    barriers = i64_array(h[BARRIERS], n)
    head = i64_array(log, _HEAD)
    clock, at = head[0], log + 8 * _HEAD
    barrier(sync, n_threads)  # so that all begin at one time
    for k in range(n):
        if barriers[k] != 0 and barrier(sync, n_threads):
            return
        mine = (counters + 8 * k, 8 * n)
        begin, end, lap = 0, chunks[k], n_threads if thread else 0
        if grains[k] != SOLO:
            begin, end, lap = take(mine, chunks[k], grains[k], thread, n_threads, 0)
        while lap < n_threads:
            i64_array(at, 1)[0] = k
            call_kernel(clock, _MONOTONIC, at + 8, 0, 0)
            call_kernel(kernels[k], records[k], begin, end, scratch)
            call_kernel(clock, _MONOTONIC, at + 24, 0, 0)
            at += 8 * _ROW
            lap = n_threads if grains[k] == SOLO else lap
            begin, end, lap = take(mine, chunks[k], grains[k], thread, n_threads, lap)
    head[1] = (at - log) // (8 * _ROW)
    barrier(sync, n_threads)
    if thread == 0:  # the others do not touch the counters before the next run
        zero = i64_array(counters, n * n_threads)
        for k in range(n * n_threads):
            zero[k] = 0


_WATCHED = Kernel(_watched, signature=numba.void(*[numba.int64] * 5))
