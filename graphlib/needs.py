"""What tasks need before there is memory for anything: workspace, time, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yupana.graphlib.context import aligned
from yupana.graphlib.kernels.compiler import Kernel, collecting
from yupana.graphlib.op import Matmul, Operand
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor


@dataclass(slots=True)
class TaskSite:
    """What an op's `lower` sees of one task; see `yupana.graphlib.op.Site`."""

    dsts: tuple[Operand, ...]
    srcs: tuple[Operand, ...]
    params: Mapping[str, Any]
    matmul: Matmul = "f32"
    workspace_address: int = 0
    used: int = 0

    @property
    def dst(self) -> Operand:
        return self.dsts[0]

    def workspace(self, nbytes: int) -> int:
        address = self.workspace_address + self.used
        self.used += aligned(nbytes)
        return address


@dataclass(frozen=True, slots=True)
class Need:
    """What a task takes while it runs."""

    workspace: int  # bytes
    work_ns: float  # predicted, on one thread
    kernels: list[Kernel]


class Lowered:
    """What tasks need, found by lowering them without memory; tasks that are alike only once."""

    def __init__(self, matmul: Matmul = "f32") -> None:
        self._matmul: Matmul = matmul
        self._found: dict[Any, Need] = {}

    def needs(self, task: Task) -> Need:
        """What a task needs."""
        operands = tuple((t.shape, t.strides, t.dtype) for t in (*task.dsts, *task.srcs))
        key = task.lower, len(task.dsts), operands, tuple(task.params.items())
        try:
            found = self._found.get(key)
        except TypeError:  # parameters that have no hash
            return _needs(task, self._matmul)
        if found is None:
            found = self._found[key] = _needs(task, self._matmul)
        return found


def _needs(task: Task, matmul: Matmul) -> Need:
    site = TaskSite(_unplaced(task.dsts), _unplaced(task.srcs), task.params, matmul)
    with collecting() as kernels:
        steps = task.lower(site)
        kernels += [step.kernel for step in steps]
    return Need(site.used, sum(step.work_ns for step in steps), kernels)


def _unplaced(tensors: Sequence[Tensor]) -> tuple[Operand, ...]:
    # Addresses that differ, since kernels ask whether the result takes over a source's memory.
    return tuple(Operand(64 * (k + 1), t.shape, t.strides, t.dtype) for k, t in enumerate(tensors))
