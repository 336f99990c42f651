"""The loop that runs a program, and the barrier where its threads meet.

Every thread enters `run` with the same header and its own number. Steps that are too small to
share run on thread 0; threads meet only before steps that need what others wrote.

Each thread begins with its own share of a step's chunks and then helps the others with theirs.
Steps that follow each other cut their rows alike, so a thread mostly finds in its core's cache
what it wrote itself; taking chunks from one counter costs twice the time in small tensors.
"""

from numba import njit

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    i64_array,
    spin_hint,
    yield_cpu,
)

# Words of the header: number of steps, then addresses of int64 arrays with an entry per step;
# the counters have one per step for each thread.
STEPS, KERNELS, RECORDS, CHUNKS, GRAINS, BARRIERS, COUNTERS, SYNC = range(8)
HEADER_WORDS = 8
SOLO = 0  # in GRAINS: thread 0 does all; else chunks are taken this many at a time
# Byte offsets into the words threads share, each in a cache line of its own.
_ARRIVED, _PHASE, _STOP, ABORT, SPINS = 0, 64, 128, 192, 256
SYNC_BYTES = 320
# How often a thread looks for the others before it offers its core between looks. Where each has a
# core of its own they are about to come, and who offers the core to another program has it back
# some milliseconds later; on a core that two of them share the other one cannot come otherwise.
SPINS_ALONE, SPINS_CROWDED = 10_000, 600  # a hundred microseconds or two; ten


@for_kernels
def barrier(sync, n_threads):
    """Wait for all threads; whether they shall stop, the same answer for each of them."""
    phase = atomic_load(sync + _PHASE)
    if atomic_add(sync + _ARRIVED, 1) == n_threads - 1:
        atomic_store(sync + _ARRIVED, 0)
        atomic_store(sync + _STOP, atomic_load(sync + ABORT))
        atomic_store(sync + _PHASE, phase + 1)
    else:
        spins = atomic_load(sync + SPINS)
        while atomic_load(sync + _PHASE) == phase:
            spins -= 1
            if spins > 0:
                spin_hint()
            else:
                yield_cpu()
    return atomic_load(sync + _STOP) != 0


@njit(nogil=True)  # called by its tests, too
def take(counters, chunks, grain, thread, n_threads, lap):
    """The next piece of a step for a thread: its first chunk, the one after its last, the lap.

    In lap 0 a thread takes from its own share, in lap 1 from its neighbour's, and so on; when
    lap `n_threads` is reached there is nothing left. `counters` holds an address for thread 0's
    counter of this step, then the bytes to the next thread's.
    """
    first_counter, stride = counters
    while lap < n_threads:
        owner = (thread + lap) % n_threads
        end = chunks * (owner + 1) // n_threads
        begin = chunks * owner // n_threads + atomic_add(first_counter + stride * owner, grain)
        if begin < end:
            return begin, min(begin + grain, end), lap
        lap += 1
    return 0, 0, lap


def run(header, thread, n_threads, scratch):
    """Run a program as thread number `thread` of `n_threads`."""
    h = i64_array(header, HEADER_WORDS)
    n, sync = h[STEPS], h[SYNC]
    kernels, records = i64_array(h[KERNELS], n), i64_array(h[RECORDS], n)
    chunks, grains = i64_array(h[CHUNKS], n), i64_array(h[GRAINS], n)
    if n_threads == 1:
        abort = i64_array(sync + ABORT, 1)
        for k in range(n):
            call_kernel(kernels[k], records[k], 0, chunks[k], scratch)
            if abort[0] != 0:
                return
        return
    barriers, counters = i64_array(h[BARRIERS], n), h[COUNTERS]
    for k in range(n):
        if barriers[k] != 0 and barrier(sync, n_threads):
            return
        grain = grains[k]
        if grain == SOLO:
            if thread == 0:
                call_kernel(kernels[k], records[k], 0, chunks[k], scratch)
            continue
        mine = (counters + 8 * k, 8 * n)
        begin, end, lap = take(mine, chunks[k], grain, thread, n_threads, 0)
        while lap < n_threads:
            call_kernel(kernels[k], records[k], begin, end, scratch)
            begin, end, lap = take(mine, chunks[k], grain, thread, n_threads, lap)
    barrier(sync, n_threads)
    if thread == 0:  # the others do not touch the counters before the next run
        zero = i64_array(counters, n * n_threads)
        for k in range(n * n_threads):
            zero[k] = 0


RUN = Kernel(run)
