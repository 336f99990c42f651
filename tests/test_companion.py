"""A second process that compiles along: see yupana/graphlib/kernels/companion.py."""

import os
import sys
import time

import pytest

from yupana.graphlib.kernels import companion as module
from yupana.graphlib.kernels.companion import Shares, companion

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")
JOBS = 12


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(module, "WORTH_A_PROCESS", 6)


@pytest.fixture
def job(tmp_path):
    """A job that takes its time and leaves the number of its process in a file."""

    def do(number):
        time.sleep(0.02)
        with (tmp_path / str(number)).open("a") as file:
            file.write(f"{os.getpid()} ")

    return do


def done_by(folder):
    return {int(path.name): path.read_text().split() for path in folder.iterdir()}


def front(shares, do):
    """What this process does of the jobs."""
    for number in range(JOBS):
        if not shares.take_first(number):
            return number
        do(number)
    return JOBS


def test_two_processes_share_the_jobs(tmp_path, job):
    with companion(JOBS, job) as shares:
        met = front(shares, job)
    found = done_by(tmp_path)
    ours = {number for number, pids in found.items() if str(os.getpid()) in pids}
    assert ours == set(range(met)), "from the front"
    assert 0 < met < JOBS, "the other process did some"
    assert set(found) | {met} == set(range(JOBS)), "where they meet, a job may be left to do"
    assert shares.begun >= JOBS


def test_few_jobs_are_done_here(tmp_path, job):
    with companion(3, job) as shares:
        assert all(shares.take_first(number) for number in range(3))
    assert not any(tmp_path.iterdir())


def test_one_core_is_not_shared(tmp_path, job, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with companion(JOBS, job) as shares:
        assert front(shares, job) == JOBS
    assert {len(pids) for pids in done_by(tmp_path).values()} == {1}


def test_a_job_that_fails_over_there_is_left_to_this_process(capfd):
    def fail(number):
        raise ValueError(f"job {number}")

    with companion(JOBS, fail) as shares:
        time.sleep(0.2)
        assert not shares.take_first(JOBS - 1)
    assert capfd.readouterr() == ("", "")


def test_an_error_here_ends_the_other_process(tmp_path, job):
    with pytest.raises(KeyboardInterrupt), companion(JOBS, job):
        raise KeyboardInterrupt
    found = len(done_by(tmp_path))
    time.sleep(0.1)
    assert len(done_by(tmp_path)) == found < JOBS


def test_without_a_second_process_all_is_done_here(tmp_path, job, monkeypatch):
    def refuse():
        raise OSError("no processes left")

    monkeypatch.setattr(os, "fork", refuse)
    with companion(JOBS, job) as shares:
        assert front(shares, job) == JOBS


def test_nobody_takes_what_the_other_has():
    shares = Shares(3)
    assert shares.take_first(0)
    assert shares.take_last() == 2
    assert shares.begun == 2
    assert shares.take_last() == 1
    assert not shares.take_first(1)
    assert shares.take_last() is None
