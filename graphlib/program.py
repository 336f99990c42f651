"""Programs: a graph lowered to a flat list of kernel calls, and run without Python in between."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.arguments import check_kinds
from yupana.graphlib.config import available_cores, config
from yupana.graphlib.context import aligned_bytes
from yupana.graphlib.dtypes import from_storage
from yupana.graphlib.errors import GraphError
from yupana.graphlib.fusion import find_groups
from yupana.graphlib.kernels import run as loop
from yupana.graphlib.kernels import serve
from yupana.graphlib.kernels.compiler import Kernel, function_type, ready
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.memory import Plan, make_plan
from yupana.graphlib.needs import Lowered, TaskSite
from yupana.graphlib.op import Matmul, Operand
from yupana.graphlib.order import Order
from yupana.graphlib.pool import MOST, POOL, Pace, Round
from yupana.graphlib.schedule import Schedule, make_schedule
from yupana.graphlib.task import Task, make_tasks
from yupana.graphlib.tensor import Tensor
from yupana.graphlib.verify import verify

if TYPE_CHECKING:
    from yupana.graphlib.graph import Graph

Loop = Callable[[int, int, int, int], None]

_SHARING_NS = 60_000.0  # predicted work below which waking a second thread does not pay
_ASIDE_S = 0.05  # longer runs leave the main thread free to take Ctrl-C


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph with everything decided that needs no data: tasks, plan, kernels."""

    tasks: list[Task]
    outputs: tuple[Tensor, ...]
    plan: Plan
    kernels: list[Kernel]
    work_ns: float  # predicted time of one run on one thread
    matmul: Matmul = "f32"


def prepare(
    graph: Graph, fuse: bool = True, reuse: bool = True, matmul: Matmul = "f32"
) -> Prepared:
    """Fuse, find workspace sizes and kernels, and plan the memory of a graph."""
    groups = find_groups(graph.nodes, graph.outputs) if fuse else []
    orders: tuple[Order, ...] = (graph.order,) if graph.order else ("left", "right")
    ordered = [make_tasks(graph.outputs, groups, order) for order in orders]
    lowered = Lowered(matmul)
    needs = {task.nodes: lowered.needs(task) for task in ordered[0]}  # in any order
    tasks, plan = ordered[0], None
    for choice in ordered:
        workspaces = [needs[task.nodes].workspace for task in choice]
        found = make_plan(choice, graph.outputs, workspaces, reuse, plan)
        if found is not plan:
            tasks, plan = choice, found
    assert plan is not None
    if config.verify:
        verify(tasks, plan)
    if config.debug >= 3:
        print(plan, file=sys.stderr)
    kernels = [kernel for need in needs.values() for kernel in need.kernels]
    work_ns = sum(need.work_ns for need in needs.values())
    kernels += [loop.RUN, serve.LEAD, serve.SERVE]
    return Prepared(tasks, tuple(graph.outputs), plan, kernels, work_ns, matmul)


class Program:
    """A compiled graph. `run()` computes its outputs from what its leaves hold at that time.

    Made by `Graph.compile`. The outputs can be read with `Tensor.numpy()` until the next run of
    any program that shares them. Threads that run it at the same time do so one after the other.

    >>> import yupana as yp
    >>> x = yp.tensor([1.0, 2.0])
    >>> y = (x * x).sum()
    >>> program = yp.Graph(y).compile()
    >>> program.run()
    >>> y.item()
    5.0

    Args:
        prepared: what `prepare` made of the graph.
        threads: see `Graph.compile`.
        lender: a program that never runs at the same time, whose arena serves if it is large
            enough; what either left there is lost when the other runs.
    """

    def __init__(
        self, prepared: Prepared, threads: int | None = None, lender: Program | None = None
    ) -> None:
        check_kinds("compile", Program.__init__.__annotations__, {"threads": threads})
        if threads is not None and not 1 <= threads <= MOST:
            raise GraphError(f"compile: got threads {threads}, want at least 1 and at most {MOST}")
        self.plan = prepared.plan
        self.tasks = prepared.tasks
        self.outputs = prepared.outputs
        self._matmul = prepared.matmul
        ready(prepared.kernels)
        self._arena: NDArray[np.uint8]
        if lender and lender._arena.size >= self.plan.peak:
            self._arena = lender._arena
        else:
            self._arena = aligned_bytes(self.plan.peak)
        self.steps: list[list[Step]] = [self._lower(k) for k in range(len(self.tasks))]
        work = sum(step.work_ns for steps in self.steps for step in steps)
        self.threads = threads or (min(config.threads, MOST) if work > _SHARING_NS else 1)
        self._pace = Pace(self.threads, least=threads or 1)
        schedule = make_schedule(
            self.tasks, self.steps, self._extent, self._workspace, self.threads
        )
        self._link(schedule)
        self._last_s = work * 1e-9
        self._storage = {t: self._memory(t) for t in self.outputs if not t.root.is_leaf}
        self._bind()

    def _address(self, tensor: Tensor) -> int:
        if tensor.root.is_leaf:
            return tensor.address
        block = self.plan.storage[tensor.root]
        return int(self._arena.ctypes.data) + block.offset + tensor.view_offset

    def _extent(self, tensor: Tensor) -> tuple[int, int]:
        """Bytes a tensor may touch: all of its root, since views stride over it."""
        start = self._address(tensor.root)
        return start, start + max(tensor.root.nbytes, 1)

    def _workspace(self, k: int) -> list[tuple[int, int]]:
        if k not in self.plan.workspaces:
            return []
        block = self.plan.workspaces[k]
        start = int(self._arena.ctypes.data) + block.offset
        return [(start, start + block.size)]

    def _lower(self, k: int) -> list[Step]:
        task = self.tasks[k]
        for src in (task.srcs[at] for at in task.mutates):
            if src.root.is_leaf:
                src.root.check_writable(task.name)

        def place(tensors: Sequence[Tensor]) -> tuple[Operand, ...]:
            return tuple(Operand(self._address(t), t.shape, t.strides, t.dtype) for t in tensors)

        site = TaskSite(place(task.dsts), place(task.srcs), task.params, self._matmul)
        for start, _ in self._workspace(k):
            site.workspace_address = start
        return task.lower(site)

    def _link(self, schedule: Schedule) -> None:
        """Write records and tables to memory; from here on only addresses are needed."""
        steps = schedule.steps
        words = [word for step in steps for word in step.record]
        self._records = np.array(words, np.int64)
        starts = np.cumsum([0, *(len(step.record) for step in steps)])[:-1]
        tables = np.zeros((5 + self.threads, max(len(steps), 1)), np.int64)
        if steps:
            tables[0] = [step.kernel.address for step in steps]
            tables[1] = self._records.ctypes.data + 8 * starts
            tables[2] = [step.chunks for step in steps]
            tables[3], tables[4] = schedule.grains, schedule.barriers
        self._tables = tables
        self._sync = aligned_bytes(loop.SYNC_BYTES).view(np.int64)
        self._is_crowded = self.threads > available_cores()
        spins = loop.SPINS_CROWDED if self._is_crowded else loop.SPINS_ALONE
        self._sync[loop.SPINS // 8] = spins
        rows = [int(row.ctypes.data) for row in tables]
        self._header = np.array([len(steps), *rows[:6], int(self._sync.ctypes.data)], np.int64)
        size = max((step.scratch for step in steps), default=0) + 64
        self._scratch = [aligned_bytes(size) for _ in range(self.threads)]
        self._addresses = [int(self._header.ctypes.data)]
        self._addresses += [int(scratch.ctypes.data) for scratch in self._scratch]
        self._loop: Loop = function_type(4)(loop.RUN.address)
        self._rounds: dict[int, Round] = {}  # by number of threads
        self._lock = threading.Lock()  # threads of two runs at a time would meet each other

    def _memory(self, tensor: Tensor) -> NDArray[np.generic]:
        root = tensor.root
        if root.is_leaf:
            return root.data
        offset = self.plan.storage[root].offset
        raw = self._arena[offset : offset + root.nbytes]
        return raw.view(root.dtype.storage).reshape(root.dtype.stored_shape(root.shape))

    def _bind(self) -> None:
        global _bound
        for tensor, memory in self._storage.items():
            tensor.root.place(memory)
        _bound = id(self)

    def run(self) -> None:
        """Compute the outputs.

        Ctrl-C stops long runs between two kernels; results are then incomplete.
        """
        if _bound != id(self):
            self._bind()
        if config.debug >= 2:
            from yupana.graphlib.profile import run_watched

            run_watched(self, config.debug)
            return
        threads = self._pace.choose()
        if threads not in self._rounds:
            header, *scratch = self._addresses[: threads + 1]
            lingers = not self._is_crowded
            self._rounds[threads] = Round(loop.RUN.address, header, scratch, lingers)
        is_warm = self.enter(self._loop, threads, self._rounds[threads])
        self._pace.record(threads, self._last_s, is_warm)

    def enter(self, entry: Loop, threads: int, round_: Round | None = None) -> bool:
        """Let so many threads enter a loop over the steps: that of `run`, or one that also looks.

        Args:
            entry: called on each thread as (header, thread, threads, scratch), see `kernels.run`.
            threads: at most those it is compiled for.
            round_: the same for short runs, by which threads that still wait get it faster.

        Returns:
            Whether no thread had to be woken for a short run.
        """

        def job(k: int) -> None:  # holds the program: threads touch its memory up to their return
            entry(self._addresses[0], k, threads, self._addresses[k + 1])

        with self._lock:
            self._clear()
            start, is_warm = time.perf_counter(), True
            if round_ and self._last_s < _ASIDE_S:
                is_warm = POOL.run(round_)
            else:
                POOL.run_aside(job, threads, self.abort)
            if not self._sync[loop.ABORT // 8]:
                self._last_s = time.perf_counter() - start
        return is_warm

    def _clear(self) -> None:
        """Forget a run that was cut short: before the next one, since Ctrl-C may come again."""
        if self._sync[loop.ABORT // 8]:
            self._sync[: loop.SPINS // 8] = 0
            self._tables[5:] = 0

    @property
    def meetings(self) -> list[int]:
        """Steps before which the threads meet."""
        return [int(k) for k in np.flatnonzero(self._tables[4])]

    def abort(self) -> None:
        """Let a run that is under way on other threads end before its next kernel."""
        self._sync[loop.ABORT // 8] = 1

    def value(self, tensor: Tensor) -> NDArray[np.generic]:
        """A copy of an output's value as this program last computed it."""
        if tensor not in self.outputs:
            raise GraphError(f"value: {tensor.label} is no output of this program")
        if tensor.root.is_leaf:
            return tensor.numpy()
        return self.peek(tensor)

    def peek(self, tensor: Tensor) -> NDArray[np.generic]:
        """A copy of what lies where `tensor` does; results that are no output get overwritten."""
        return from_storage(tensor.seen_in(self._memory(tensor)), tensor.dtype).copy()

    def __repr__(self) -> str:
        n_steps = sum(len(steps) for steps in self.steps)
        return f"<Program of {n_steps} steps on {self.threads} threads, {self.plan.peak} bytes>"

    def __str__(self) -> str:
        from yupana.graphlib.draw import show_program

        return show_program(self)

    def _repr_html_(self) -> str:
        from yupana.graphlib.draw import program_html

        return program_html(self)


_bound = 0  # id of the program whose memory the outputs show


def evaluate(tensor: Tensor) -> NDArray[np.generic]:
    """Compute one tensor on its own; `Tensor.numpy` does this for tensors without a value."""
    from yupana.graphlib.graph import Graph

    program = Graph([tensor]).compile(threads=1)
    program.run()
    value = program.value(tensor)
    if not tensor.root.is_leaf:
        tensor.root.place(None)  # the next reading computes it anew from the leaves
    return value
