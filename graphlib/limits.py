"""What this machine can do at most, measured: the measure of what a program achieves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import aligned_bytes
from yupana.graphlib.kernels.compiler import Kernel, function_type, ready
from yupana.graphlib.kernels.peak import COPY, FLOPS_PER_REPEAT, PEAK, READ
from yupana.graphlib.pool import POOL

# Bytes of the operands together: what the second and the third cache hold, and what none does.
SIZES = (1 << 18, 1 << 22, 1 << 27)
_BURST_S = 0.002  # of one measurement, about
_BURSTS = 15  # of which the best counts: others may want the same cores


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes in 10⁹ a second, of operands that are `nbytes` together."""

    nbytes: int
    read: float
    copy: float  # what is read and what is written, added up

    @property
    def best(self) -> float:
        """What no task can exceed."""
        return max(self.read, self.copy)


@dataclass(frozen=True, slots=True)
class Limits:
    """What so many threads reach together.

    Attributes:
        gflops: 10⁹ floating-point operations a second: multiply-adds of f32 in registers.
        speeds: of memory, the smallest operands first.
    """

    threads: int
    gflops: float
    speeds: tuple[Speed, ...]

    def gb_per_s(self, nbytes: float) -> float:
        """The most bytes that can be moved, in 10⁹ a second, where so many are touched."""
        fitting = (speed for speed in self.speeds if nbytes <= speed.nbytes)
        return next(fitting, self.speeds[-1]).best

    def share(self, flops: float, nbytes: float, ns: float) -> float:
        """How much of what is possible so much work in so many ns is: 1 is a limit reached.

        >>> limits = Limits(1, 100.0, (Speed(1000, 20.0, 10.0),))
        >>> limits.share(flops=500.0, nbytes=100.0, ns=10.0)  # of 5 ns for either
        0.5
        """
        if ns <= 0:
            return 0.0
        return max(flops / self.gflops, nbytes / self.gb_per_s(nbytes)) / ns


def measure_limits(threads: int = 1, sizes: Sequence[int] = SIZES) -> Limits:
    """Measure multiply-adds in registers, and memory that is read and copied.

    It takes about half a second. Of several short measurements the best counts; on a machine with
    other work to do it may still be less than the truth.

    >>> limits = measure_limits(sizes=[1 << 16])
    >>> limits.gflops > 0.1, limits.gb_per_s(1000) > 0.1
    (True, True)
    """
    ready([PEAK, READ, COPY])
    floats = [np.array([0.5, 1.0, 0.0], np.float32) for _ in range(threads)]
    repeats = 1 << 18  # 1 ms at 2 · 10¹¹ a second
    records = [[repeats, int(f.ctypes.data)] for f in floats]
    ns = _least_ns(PEAK, records)
    speeds = tuple(_speed(threads, nbytes) for nbytes in sizes)
    return Limits(threads, threads * repeats * FLOPS_PER_REPEAT / ns, speeds)


def _speed(threads: int, nbytes: int) -> Speed:
    """That of operands of `nbytes` in all, each thread with its share."""
    share = max(nbytes // threads, 64) // 64 * 64
    memory = [aligned_bytes(share) for _ in range(threads)]
    for part in memory:
        part[:] = 0  # so that there are pages
    sums = [np.zeros(1, np.float32) for _ in range(threads)]
    pairs = zip(memory, sums, strict=True)
    reading = [[int(m.ctypes.data), int(s.ctypes.data), share] for m, s in pairs]
    half = share // 2
    copying = [[int(m.ctypes.data), int(m.ctypes.data) + half, half] for m in memory]
    total = share * threads
    read, copy = (total / _least_ns(k, r) for k, r in ((READ, reading), (COPY, copying)))
    return Speed(nbytes, read, copy)


def _least_ns(kernel: Kernel, records: Sequence[Sequence[int]]) -> float:
    """ns of one call on every thread, each with its record, when they do it over and over."""
    words: list[NDArray[np.int64]] = [np.array(record, np.int64) for record in records]
    entry = function_type(4)(kernel.address)
    addresses = [int(w.ctypes.data) for w in words]
    spent = [0.0] * len(words)

    def job(calls: int) -> Callable[[int], None]:
        def run(thread: int) -> None:
            start = time.perf_counter()
            for _ in range(calls):
                entry(addresses[thread], 0, 1, 0)
            spent[thread] = time.perf_counter() - start

        return run

    def burst(calls: int) -> float:
        POOL.run_aside(job(calls), len(words), lambda: None)
        return max(spent) / calls

    once = min(burst(1) for _ in range(2))
    calls = max(1, round(_BURST_S / max(once, 1e-7)))
    return 1e9 * min(burst(calls) for _ in range(_BURSTS))
