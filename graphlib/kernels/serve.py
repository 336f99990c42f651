"""Runs handed from thread to thread in machine code.

A thread that has done its share of a run soon gets the next one: a token follows the last within
a fraction of a millisecond. Waking it by the operating system takes tens of microseconds each time,
and on a virtual machine it may come back on the core of the thread that woke it. So it looks for a
while whether there is something in its mailbox before it parks.
"""

from numba import njit

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import (
    atomic_load,
    atomic_store,
    call_kernel,
    compare_and_swap,
    i64_array,
    spin_hint,
    yield_cpu,
)

# Words of a mailbox, one for each thread but the first of a run: the state, whether the thread is
# wanted back, and the run: entry, header, number of the thread, threads, scratch.
STATE, WANTED, _ENTRY, _HEADER, _NUMBER, _THREADS, _SCRATCH = range(7)
BOX_WORDS = 16  # cache lines of its own
PARKED, WAITING, TAKEN, BUSY = range(4)
# Words of a round: entry, header, threads, how many of them are parked, and for each its scratch,
# then whether it is parked.
N_PARKED, ROUND_HEAD = 3, 4
# A millisecond or two: longer than most of what is done between two tokens, too short to be seen
# by who else could use the core.
LOOKS = 50_000
_LOOKS_FOR_LAST = 1000


def serve(box, looks, _begin, _end):
    """Do the runs that come into a mailbox until there was none for `looks` looks, or it must."""
    words = i64_array(box, BOX_WORDS)
    left = looks
    while True:
        state = atomic_load(box)
        if state == BUSY:
            call_kernel(
                words[_ENTRY], words[_HEADER], words[_NUMBER], words[_THREADS], words[_SCRATCH]
            )
            atomic_store(box, WAITING)
            left = looks
        must_end = left <= 0 or atomic_load(box + 8 * WANTED) != 0
        if must_end and compare_and_swap(box, WAITING, PARKED):
            return
        left -= 1
        spin_hint()


@njit(nogil=True)
def take(box):
    """Get hold of a mailbox, when its thread has no run any more; whether that waits."""
    while True:
        if compare_and_swap(box, WAITING, TAKEN):
            return True
        if compare_and_swap(box, PARKED, TAKEN):
            return False
        yield_cpu()


def lead(boxes, round_, is_woken, _end):
    """Hand a run to its other threads, enter it as thread 0, and wait until all are through.

    Where some are parked it does not enter: who called finds them in the round, wakes them, and
    calls again with `is_woken`.
    """
    threads, parked = i64_array(round_, ROUND_HEAD)[2], 0
    w = i64_array(round_, ROUND_HEAD + 2 * threads)
    if is_woken == 0:
        for k in range(1, threads):
            box = boxes + 8 * BOX_WORDS * (k - 1)
            is_there = take(box)
            words = i64_array(box, BOX_WORDS)
            words[_ENTRY], words[_HEADER], words[_NUMBER] = w[0], w[1], k
            words[_THREADS], words[_SCRATCH] = threads, w[ROUND_HEAD + k]
            atomic_store(box, BUSY)
            w[ROUND_HEAD + threads + k] = 0 if is_there else 1
            parked += 0 if is_there else 1
        w[N_PARKED] = parked
        if parked != 0:
            return
    w[N_PARKED] = 0
    call_kernel(w[0], w[1], 0, threads, w[ROUND_HEAD])
    for k in range(1, threads):  # they are about to leave; until then they touch the run's memory
        left = _LOOKS_FOR_LAST
        while atomic_load(boxes + 8 * BOX_WORDS * (k - 1)) == BUSY:
            left -= 1
            if left > 0:
                spin_hint()
            else:
                yield_cpu()


SERVE, LEAD = Kernel(serve), Kernel(lead)
