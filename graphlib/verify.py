"""Checks of what the passes produced, switched on by YUPANA_VERIFY=1: they find our own faults."""

from __future__ import annotations

from collections.abc import Sequence

from yupana.graphlib.errors import GraphError
from yupana.graphlib.memory import Plan
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor


def verify(tasks: Sequence[Task], plan: Plan) -> None:
    """Raise if a task reads what is not there, or two live blocks overlap.

    Raises:
        GraphError: naming the tasks or blocks; a fault of this library, please report it.
    """
    _verify_order(tasks)
    _verify_takeovers(tasks, plan)
    _verify_blocks(plan)


def _verify_order(tasks: Sequence[Task]) -> None:
    written: set[Tensor] = set()
    for task in tasks:
        for src in task.srcs:
            if not src.root.is_leaf and src.root not in written:
                raise GraphError(f"verify: {task.name} reads {src.label} before it is computed")
        for dst in task.dsts:
            written.add(dst.root)


def _verify_takeovers(tasks: Sequence[Task], plan: Plan) -> None:
    """Within a block, each tensor must be read for the last time before the next is written."""
    written = {dst: k for k, task in enumerate(tasks) for dst in task.dsts}
    last_read: dict[Tensor, int] = {}
    for k, task in enumerate(tasks):
        for src in task.srcs:
            last_read[src.root] = k
    for block in plan.blocks:
        for before, after in zip(block.tensors, block.tensors[1:], strict=False):
            if last_read.get(before, 0) > written[after]:
                raise GraphError(
                    f"verify: {after.label} overwrites {before.label}, which is read later"
                )


def _verify_blocks(plan: Plan) -> None:
    blocks = sorted(plan.blocks, key=lambda block: block.offset)
    for k, block in enumerate(blocks):
        if block.offset + block.size > plan.peak:
            raise GraphError(f"verify: {block.label} lies beyond the end of the arena")
        for other in blocks[k + 1 :]:
            if other.offset >= block.offset + block.size:
                break
            if block.first <= other.last and other.first <= block.last:
                raise GraphError(f"verify: {block.label} and {other.label} overlap")
