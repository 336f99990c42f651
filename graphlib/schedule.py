"""Which threads run a step, and before which steps they must meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yupana.graphlib.kernels.run import SOLO
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor

Extent = tuple[int, int]  # first byte, and the one after the last

_SOLO_NS = 1500.0  # below this, meeting costs more than a second thread saves
_GRAINS = 4  # pieces per thread, so that a thread that is held up does not hold up the rest


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps in order, with the number of chunks taken at a time and whether to meet first."""

    steps: list[Step]
    grains: list[int]
    barriers: list[bool]


def make_schedule(
    tasks: Sequence[Task],
    steps: Sequence[Sequence[Step]],
    extent: Callable[[Tensor], Extent],
    workspace: Callable[[int], list[Extent]],
    threads: int,
) -> Schedule:
    """Decide for each step whether it is shared, and leave out barriers nobody needs.

    Two steps need a barrier between them if one writes bytes the other touches, unless both run
    on thread 0.
    """
    schedule = Schedule([], [], [])
    pending: list[tuple[bool, list[Extent], list[Extent]]] = []  # solo, reads, writes
    for k, (task, parts) in enumerate(zip(tasks, steps, strict=True)):
        if threads > 1 and parts:
            reads = [extent(src) for src in task.srcs]
            writes = [extent(dst) for dst in task.dsts] + workspace(k)
            writes += [extent(task.srcs[at]) for at in task.mutates]
        for number, step in enumerate(parts):
            solo = threads == 1 or step.chunks == 1 or step.work_ns < _SOLO_NS
            meet = False
            if threads > 1:
                if number:  # a later step of a node reads what the earlier ones wrote
                    meet = not (solo and pending[-1][0])
                meet = meet or any(
                    not (solo and other_solo)
                    and (
                        _overlap(writes, other_reads + other_writes)
                        or _overlap(reads, other_writes)
                    )
                    for other_solo, other_reads, other_writes in pending
                )
                if meet:
                    pending.clear()
                pending.append((solo, reads, writes))
            schedule.steps.append(step)
            schedule.grains.append(SOLO if solo else max(1, step.chunks // (_GRAINS * threads)))
            schedule.barriers.append(meet)
    return schedule


def _overlap(a: list[Extent], b: list[Extent]) -> bool:
    return any(x0 < y1 and y0 < x1 for x0, x1 in a for y0, y1 in b)
