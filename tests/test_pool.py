"""Threads between runs: handed over, parked, woken elsewhere, shared by several runs at a time."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from yupana.graphlib.kernels import serve
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.pool import Pace, Pool, Round

THREADS = 3


def count_entries(header, thread, n_threads, scratch):
    """Count in the header how often each thread came, and in its scratch with how many others."""
    i64_array(header, n_threads)[thread] += 1
    i64_array(scratch, 1)[0] = n_threads


COUNT = Kernel(count_entries)


class Counted:
    """A round whose entries are counted."""

    def __init__(self, lingers: bool = True, n: int = THREADS) -> None:
        self.counts, self.seen = np.zeros(n, np.int64), np.zeros(n, np.int64)
        scratch = [int(self.seen.ctypes.data) + 8 * k for k in range(n)]
        self.round = Round(COUNT.address, int(self.counts.ctypes.data), scratch, lingers)

    def run(self, pool: Pool) -> bool:
        return pool.run(self.round)


def states(pool: Pool) -> list[int]:
    return [int(t._box[serve.STATE]) for t in pool._threads]


def until(is_so) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_each_thread_enters_every_round_once_and_waits_for_the_next():
    pool, counted = Pool(), Counted()
    counted.round.looks = 10**9  # they wait until they are wanted
    assert not counted.run(pool)  # woken
    for k in range(2, 50):
        until(lambda: states(pool) == [serve.WAITING] * 2)
        assert counted.run(pool)  # there
        assert counted.counts.tolist() == [k] * THREADS
    assert counted.seen.tolist() == [THREADS] * THREADS
    fewer = Counted(n=2)
    assert fewer.run(pool)
    assert fewer.counts.tolist() == [1, 1]
    done: list[int] = []
    pool.run_aside(done.append, THREADS, lambda: None)  # which two of them must leave off for
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("lingers", [True, False])
def test_threads_that_nobody_needs_park(lingers):
    pool, counted = Pool(), Counted(lingers)
    for k in range(1, 6):
        counted.run(pool)
        assert counted.counts.tolist() == [k] * THREADS
        until(lambda: states(pool) == [serve.PARKED] * 2)


def test_who_is_woken_may_run_on_every_core_again():
    pool, counted, allowed = Pool(), Counted(), os.sched_getaffinity(0)
    for _ in range(20):
        counted.run(pool)
        until(lambda: states(pool) == [serve.PARKED] * 2)
        for thread in pool._threads:
            assert os.sched_getaffinity(thread._thread.native_id or 0) == allowed


def test_runs_of_several_threads_at_a_time_share_the_pool():
    pool, all_of = Pool(), [Counted(lingers=k != 1) for k in range(3)]
    aside: list[int] = []

    def work(counted: Counted) -> None:
        for k in range(100):
            counted.run(pool)
            if k % 10 == 0:
                pool.run_aside(aside.append, THREADS, lambda: None)

    workers = [threading.Thread(target=work, args=(c,), daemon=True) for c in all_of]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert [c.counts.tolist() for c in all_of] == [[100] * THREADS] * 3
    assert sorted(aside) == sorted([0, 1, 2] * 30)


def test_ctrl_c_while_a_run_is_handed_out_leaves_nobody_waiting():
    pool, counted = Pool(), Counted()
    lead, calls = pool._lead, []

    def interrupted(*args):
        lead(*args)
        calls.append(args)
        if len(calls) == 1:  # all threads are parked, and have to be woken
            raise KeyboardInterrupt

    pool.__dict__["_lead"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        counted.run(pool)
    assert counted.counts.tolist() == [1] * THREADS
    counted.run(pool)
    assert counted.counts.tolist() == [2] * THREADS


def test_ctrl_c_before_threads_are_woken_leaves_nobody_waiting(monkeypatch):
    pool, counted = Pool(), Counted()
    parked = counted.round.parked

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        return parked()

    monkeypatch.setattr(counted.round, "parked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        counted.run(pool)
    assert counted.counts.tolist() == [1] * THREADS


def test_threads_are_woken_where_the_system_does_not_let_us_choose_their_core(monkeypatch):
    def refuse(number, cores=None):
        raise PermissionError

    for name in ("sched_setaffinity", "sched_getaffinity"):
        pool, counted = Pool(), Counted(lingers=False)
        monkeypatch.setattr(os, name, refuse)
        for k in range(1, 4):
            counted.run(pool)
            assert counted.counts.tolist() == [k] * THREADS


def test_what_a_job_raises_reaches_the_caller_and_its_thread_lives_on():
    pool, counted = Pool(), Counted()

    def job(k: int) -> None:
        if k == 1:
            raise MemoryError("of one job")

    with pytest.raises(MemoryError, match="of one job"):
        pool.run_aside(job, THREADS, lambda: None)
    counted.run(pool)
    assert counted.counts.tolist() == [1] * THREADS


def test_a_run_that_woke_threads_is_timed_by_the_next_one():
    pace = Pace(2)
    for _ in range(3):
        pace.record(pace.choose(), 1.0)
    fast = []
    for _ in range(60):
        threads = pace.choose()
        fast.append(threads)
        # One thread is slower. After it the others are parked, and waking them takes long.
        is_warm = len(fast) < 2 or fast[-2] == 2
        pace.record(threads, 2.0 if threads == 1 else 1.0 if is_warm else 5.0, is_warm)
    assert fast[-1] == 2
    assert fast.count(1) < 5
