"""Tasks: what a program runs, one recorded node each or a group of nodes in one kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yupana.graphlib.errors import GraphError
from yupana.graphlib.op import Cost, Lower
from yupana.graphlib.order import Order, evaluation_order
from yupana.graphlib.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """One or more nodes that run together.

    `dsts` are the results that get memory (a fused group leaves inner ones out), `inplace` the
    sources whose memory the first result may take over, `mutates` the sources written to.
    """

    nodes: tuple[Tensor, ...]
    srcs: tuple[Tensor, ...]
    dsts: tuple[Tensor, ...]
    lower: Lower
    params: Mapping[str, Any] = field(default_factory=dict)
    inplace: tuple[int, ...] = ()
    mutates: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Names of its ops, for reports."""
        return "+".join(node.op.name for node in self.nodes if node.op)

    @property
    def cost(self) -> Cost:
        """Work of its nodes; a fused group moves only what goes in and comes out."""
        parts = [node.op.cost_of(node) for node in self.nodes if node.op]
        if len(parts) == 1:
            return parts[0]
        flops = sum(part.flops for part in parts)
        moved = sum(t.nbytes for t in (*self.srcs, *self.dsts))
        return Cost(flops, float(moved))


def single(node: Tensor) -> Task:
    """The task of one node on its own."""
    op = node.op
    if op is None or op.lower is None:
        raise GraphError(f"task: {node.label} is a leaf or a view, and nothing to run")
    return Task((node,), node.srcs, (node,), op.lower, node.params, op.inplace, op.mutates)


def make_tasks(outputs: Sequence[Tensor], groups: Sequence[Task], order: Order) -> list[Task]:
    """What `outputs` need, in the order it runs: `groups`, and each other node on its own.

    Views need no task.
    """
    unit = {node: group for group in groups for node in group.nodes}
    nodes = evaluation_order(outputs, order, {n: g.nodes for n, g in unit.items()})
    tasks = []
    for node in nodes:
        if node in unit:
            tasks.append(unit[node])
        elif node.op is not None and not node.op.is_view:
            tasks.append(single(node))
    return tasks
