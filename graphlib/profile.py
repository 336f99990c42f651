"""Where the time of a program goes: each task timed on its own, and a run on all threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import aligned_bytes
from yupana.graphlib.errors import NonFiniteError, SettingError
from yupana.graphlib.kernels.compiler import function_type
from yupana.graphlib.kernels.run import HEADER_WORDS, RUN, SYNC, SYNC_BYTES
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.program import Program
from yupana.graphlib.task import Task
from yupana.graphlib.watch import Watched, watch


@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one task on one thread, and what the planner had predicted."""

    task: Task
    ns: float
    predicted_ns: float

    @property
    def gflops(self) -> float:
        """10⁹ floating-point operations a second."""
        return self.task.cost.flops / self.ns if self.ns else 0.0

    @property
    def gb_per_s(self) -> float:
        """10⁹ bytes read or written a second, counting each operand once."""
        return self.task.cost.nbytes / self.ns if self.ns else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a program goes.

    Attributes:
        timings: of each task on its own, on one thread, in the order they run.
        watched: one whole run on all threads.
    """

    timings: list[Timing]
    watched: Watched

    def __iter__(self) -> Iterator[Timing]:
        return iter(self.timings)

    def __len__(self) -> int:
        return len(self.timings)

    @property
    def ns(self) -> float:
        """All tasks on one thread."""
        return sum(timing.ns for timing in self.timings)

    def by_op(self) -> dict[str, list[Timing]]:
        """The timings of each kind of task, what takes most time first."""
        groups: dict[str, list[Timing]] = {}
        for timing in self.timings:
            groups.setdefault(timing.task.name, []).append(timing)
        return dict(sorted(groups.items(), key=lambda group: -sum(t.ns for t in group[1])))

    def draw(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Draw the watched run as .svg; see `yupana.graphlib.draw.draw_profile`."""
        from yupana.graphlib.draw import draw_profile

        return draw_profile(self, path, **options)

    def save_trace(self, path: str | os.PathLike[str]) -> Path:
        """Write the watched run for chrome://tracing; see `yupana.graphlib.draw.save_trace`."""
        from yupana.graphlib.draw import save_trace

        return save_trace(self, path)

    def __str__(self) -> str:
        from yupana.graphlib.draw import show_profile

        return show_profile(self)

    def __repr__(self) -> str:
        n_threads = len(self.watched.threads)
        return f"<Profile of {len(self)} tasks on {n_threads} threads: {self.ns / 1e6:.3g} ms>"

    def _repr_svg_(self) -> str:
        from yupana.graphlib.draw import profile_svg

        return profile_svg(self)


def profile(program: Program, runs: int = 20) -> Profile:
    """The median time of every task over `runs` runs on one thread, and a run on all threads.

    The program computes what `run()` computes, twice `runs` times: optimiser steps in it are
    taken as often. The call of each kernel from Python, about half a microsecond, is taken off.
    Of the runs on all threads the fastest is kept.

    Raises:
        SettingError: fewer than one run.

    >>> import yupana as yp
    >>> x = yp.tensor([1.0, 2.0])
    >>> found = profile(yp.Graph((x * x).sum()).compile())
    >>> [timing.task.name for timing in found], list(found.by_op()) != []
    (['mul', 'sum'], True)
    """
    if runs < 1:
        raise SettingError(f"profile: runs: got {runs}, want at least 1.")
    tasks = stepwise(program)
    times = np.zeros((runs, len(tasks)))
    for run in range(runs):
        for k, task in enumerate(tasks):
            start = time.perf_counter_ns()
            task()
            times[run, k] = time.perf_counter_ns() - start
    overhead = _call_ns()
    medians = np.median(times, axis=0)
    timings = [
        Timing(
            task,
            max(float(ns) - overhead * len(steps), 0.0),
            sum(step.work_ns for step in steps),
        )
        for task, steps, ns in zip(program.tasks, program.steps, medians, strict=True)
    ]
    return Profile(timings, watch(program, runs))


def stepwise(program: Program) -> list[Callable[[], None]]:
    """A function per task that runs it on the calling thread; in order they are a run."""
    size = max((s.scratch for steps in program.steps for s in steps), default=0) + 64
    scratch = aligned_bytes(size)
    place = int(scratch.ctypes.data)

    def runner(steps: list[Step]) -> Callable[[], None]:
        calls = []
        for step in steps:
            record = np.array(step.record, np.int64)
            entry = function_type(4, releases_gil=False)(step.kernel.address)
            calls.append((entry, int(record.ctypes.data), step.chunks, record, scratch))

        def run() -> None:
            for entry, address, chunks, _, _ in calls:
                entry(address, 0, chunks, place)

        return run

    return [runner(steps) for steps in program.steps]


def run_watched(program: Program, level: int, out: TextIO | None = None) -> None:
    """Run a program task by task and tell what happens; `YUPANA_DEBUG` from 2 on does this.

    Args:
        level: 2 prints the time of each task; 4 also the least and the largest value of each
            result, and stops at a NaN or an infinity. Minus infinity, which masks put into scores,
            is marked where it comes first, and lets the run go on.
    Raises:
        NonFiniteError: a result is NaN or infinite, at level 4. Names it, and the first that was
            not finite.
    """
    first = ""
    for k, (task, run) in enumerate(zip(program.tasks, stepwise(program), strict=True)):
        start = time.perf_counter_ns()
        run()
        line = f"{k:5d} {(time.perf_counter_ns() - start) / 1e3:10.2f} us  {task.name}"
        for dst in task.dsts if level >= 4 else ():
            values = program.peek(dst)
            line += f"  {dst.label} {_span(values)}"
            if not first and not np.isfinite(values).all():
                first = f"{dst.label}, recorded at {dst.site}"
                line += f"  <- first value that is not finite; recorded at {dst.site}"
        print(line, file=out or sys.stderr)
        if first:
            _stop_at_nonfinite(program, task, first)


def _stop_at_nonfinite(program: Program, task: Task, first: str) -> None:
    for dst in task.dsts:
        values = program.peek(dst)
        n_nan, n_inf = int(np.isnan(values).sum()), int((values == np.inf).sum())
        if n_nan or n_inf:
            raise NonFiniteError(
                f"{task.name}: values that are not finite: got {n_nan} NaN and {n_inf} infinities "
                f"in {dst.label}, want numbers. The first not to be finite was {first}."
            )


def _span(values: NDArray[np.generic]) -> str:
    if not values.size:
        return "[empty]"
    numbers = values.astype(np.float64)
    return f"[{np.min(numbers):.4g}, {np.max(numbers):.4g}]"


def _call_ns() -> float:
    """Time of a call through ctypes of a kernel that has nothing to do."""
    sync = aligned_bytes(SYNC_BYTES)
    header = np.zeros(HEADER_WORDS, np.int64)
    header[1:SYNC] = header.ctypes.data
    header[SYNC] = sync.ctypes.data
    entry, address = function_type(4, releases_gil=False)(RUN.address), int(header.ctypes.data)
    times = []
    for _ in range(200):
        start = time.perf_counter_ns()
        entry(address, 0, 1, 0)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times))
