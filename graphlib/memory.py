"""The memory planner: an offset in one arena for every result, before any data exist.

A block is memory that one result uses, or several in turn when an op takes over the memory of
a source. Two blocks may overlap in the arena only if they are never alive at the same time.
Leaves are not planned: their contexts own them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import ALIGNMENT, aligned
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor

# Classes of memory, in the order reports show them.
WEIGHTS, OPTIMISER, INPUTS = "weights", "optimiser", "inputs"
GRADIENTS, ACTIVATIONS, WORKSPACE = "gradients", "activations", "workspace"
CLASSES = (WEIGHTS, OPTIMISER, INPUTS, GRADIENTS, ACTIVATIONS, WORKSPACE)


@dataclass(slots=True)
class Block:
    """Memory for one result, or for several that take it over from one another."""

    size: int  # bytes, a multiple of ALIGNMENT
    first: int  # index of the task that writes it first
    last: int  # index of the task that reads it last; the number of tasks for outputs
    kind: str  # one of CLASSES, that of its first result
    tensors: list[Tensor]  # those it holds, one after the other; empty for workspace
    offset: int = 0
    changes: list[tuple[int, str]] = field(default_factory=list)  # from which task on, what kind

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Kind, first and last task of each stretch of its life."""
        starts = [(self.first, self.kind), *self.changes]
        ends = [start - 1 for start, _ in starts[1:]] + [self.last]
        for (first, kind), last in zip(starts, ends, strict=True):
            yield kind, first, last

    @property
    def label(self) -> str:
        """What lies there, for pictures and reports."""
        return self.tensors[0].label if self.tensors else WORKSPACE


@dataclass(slots=True, repr=False)
class Plan:
    """Where every result lies, and what that costs.

    `peak` is the size of the arena; no placement can need less than `lower_bound`, the largest
    sum of bytes alive at one time. Times are indices of tasks: nodes, or groups of fused nodes.

    >>> import yupana as yp
    >>> plan = yp.Graph(yp.tensor([1.0, 2.0]).exp().exp()).plan()  # the second in place
    >>> len(plan.blocks), plan.peak == plan.lower_bound
    (1, True)
    """

    blocks: list[Block]
    n_tasks: int
    peak: int
    lower_bound: int
    leaf_bytes: dict[str, int]  # of leaves, by class
    mapped_bytes: int  # of leaves that lie in a mapped file, counted among those
    by_class: dict[str, int]  # leaves, and the most bytes alive at one time of the other classes
    storage: dict[Tensor, Block]
    workspaces: dict[int, Block]  # by task index

    @property
    def total(self) -> int:
        """Bytes of leaves and arena together."""
        return self.peak + sum(self.leaf_bytes.values())

    @property
    def own_bytes(self) -> int:
        """The same without mapped files, whose pages the system can take back at any time."""
        return self.total - self.mapped_bytes

    def live_bytes(self, kind: str | None = None) -> NDArray[np.int64]:
        """Bytes alive while each task runs, of one class or of all."""
        spans = [
            (block.size, first, last)
            for block in self.blocks
            for of, first, last in block.spans()
            if kind in (None, of)
        ]
        return _live(spans, self.n_tasks)

    def draw(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Draw memory over time as .svg; see `yupana.graphlib.draw.draw_plan`."""
        from yupana.graphlib.draw import draw_plan

        return draw_plan(self, path, **options)

    def __str__(self) -> str:
        from yupana.graphlib.draw import show_plan

        return show_plan(self)

    def __repr__(self) -> str:
        return f"<Plan of {len(self.blocks)} blocks, {self.n_tasks} tasks: {self.peak} bytes>"

    def _repr_svg_(self) -> str:
        from yupana.graphlib.draw import plan_svg

        return plan_svg(self)


def make_plan(
    tasks: Sequence[Task],
    outputs: Sequence[Tensor],
    workspace_bytes: Sequence[int],
    reuse: bool = True,
    best: Plan | None = None,
) -> Plan:
    """Plan the arena for `tasks` run in the given order.

    Args:
        outputs: tensors that stay readable after the run.
        workspace_bytes: what each task needs for itself while it runs.
        reuse: False gives every result memory of its own, to find a planner's fault.
        best: of another order of the same graph; returned unless this one has a smaller peak.
    """
    storage, workspaces = _find_blocks(tasks, outputs, reuse), _find_workspaces(workspace_bytes)
    blocks = _all_blocks(storage, workspaces)
    end = len(tasks)
    if not reuse:
        for block in blocks:
            block.first, block.last, block.changes = 0, end, []
    bound = _lower_bound(blocks, end)
    if best and best.peak <= bound:
        return best
    leaf_bytes, mapped = _leaf_bytes(tasks)
    peak = _place(blocks, bound)
    plan = Plan(blocks, end, peak, bound, leaf_bytes, mapped, dict(leaf_bytes), storage, workspaces)
    for kind in (GRADIENTS, ACTIVATIONS, WORKSPACE):
        plan.by_class[kind] = int(plan.live_bytes(kind).max(initial=0))
    return best if best and best.peak <= peak else plan


def least_bytes(
    tasks: Sequence[Task], outputs: Sequence[Tensor], workspace_bytes: Sequence[int]
) -> int:
    """What `Plan.own_bytes` is at least: quicker to know than a plan, and hardly less."""
    storage, workspaces = _find_blocks(tasks, outputs, True), _find_workspaces(workspace_bytes)
    leaf_bytes, mapped = _leaf_bytes(tasks)
    bound = _lower_bound(_all_blocks(storage, workspaces), len(tasks))
    return sum(leaf_bytes.values()) - mapped + bound


def _find_workspaces(workspace_bytes: Sequence[int]) -> dict[int, Block]:
    return {
        k: Block(aligned(nbytes), k, k, WORKSPACE, [])
        for k, nbytes in enumerate(workspace_bytes)
        if nbytes
    }


def _all_blocks(storage: dict[Tensor, Block], workspaces: dict[int, Block]) -> list[Block]:
    results = {id(block): block for block in storage.values()}
    return [*results.values(), *workspaces.values()]


def _lower_bound(blocks: Iterable[Block], n_tasks: int) -> int:
    live = _live(((b.size, b.first, b.last) for b in blocks), n_tasks)
    return int(live.max(initial=0))


def _find_blocks(
    tasks: Sequence[Task], outputs: Sequence[Tensor], reuse: bool
) -> dict[Tensor, Block]:
    end = len(tasks)
    last_use: dict[Tensor, int] = {}
    for k, task in enumerate(tasks):
        for tensor in (*task.srcs, *task.dsts):
            last_use[tensor.root] = k
    for output in outputs:
        last_use[output.root] = end
    storage: dict[Tensor, Block] = {}
    for k, task in enumerate(tasks):
        for dst in task.dsts:
            if dst.view_src is not None:
                continue
            source = _taken_over(task, dst, k, last_use) if reuse else None
            if source is not None and source.root in storage:
                block = storage[source.root]
                block.last = last_use[dst]
                block.tensors.append(dst)
                block.changes.append((k, _kind(dst)))
            else:
                size = max(aligned(dst.nbytes), ALIGNMENT)
                block = Block(size, k, last_use[dst], _kind(dst), [dst])
            storage[dst] = block
    return storage


def _kind(tensor: Tensor) -> str:
    return GRADIENTS if tensor.role in ("backward", "gradient") else ACTIVATIONS


def _taken_over(task: Task, dst: Tensor, k: int, last_use: dict[Tensor, int]) -> Tensor | None:
    """The source whose memory `dst` may use, if the op allows it and nobody reads it later."""
    for at in task.inplace:
        src = task.srcs[at]
        root = src.root
        fits = (
            not root.is_leaf
            and last_use[root] == k
            and src.shape == dst.shape
            and src.dtype is dst.dtype
            and src.is_contiguous
            and src.nbytes == root.nbytes
        )
        # Another view of the same memory would be read while it is overwritten.
        alone = all(other is src or other.root is not root for other in task.srcs)
        if fits and alone and dst is task.dsts[0]:
            return src
    return None


def _leaf_bytes(tasks: Sequence[Task]) -> tuple[dict[str, int], int]:
    """Of leaves: bytes by class, and how many of them all lie in mapped files."""
    sizes, mapped = {WEIGHTS: 0, OPTIMISER: 0, INPUTS: 0}, 0
    written = {task.srcs[at].root for task in tasks for at in task.mutates}
    leaves = {src.root for task in tasks for src in task.srcs if src.root.is_leaf}
    for leaf in leaves:
        if leaf.is_param:
            kind = WEIGHTS
        elif leaf in written:
            kind = OPTIMISER
        else:
            is_frozen_weight = leaf.name and leaf.dtype.is_real and not leaf.is_input
            kind = WEIGHTS if is_frozen_weight else INPUTS
        sizes[kind] += aligned(leaf.nbytes)
        if leaf.has_value and not leaf.data.flags.writeable:
            mapped += aligned(leaf.nbytes)
    return sizes, mapped


def _live(spans: Iterable[tuple[int, int, int]], n_tasks: int) -> NDArray[np.int64]:
    """Bytes alive during each task, from (size, first, last)."""
    change = np.zeros(n_tasks + 2, np.int64)
    for size, first, last in spans:
        change[first] += size
        change[last + 1] -= size
    return np.cumsum(change)[: max(n_tasks, 1)]


def _place(blocks: list[Block], bound: int) -> int:
    """Give every block its offset; returns the peak. The best of several orders is kept."""
    orders: list[Callable[[Block], tuple[int, ...]]] = [
        lambda b: (-b.size, b.first),
        lambda b: (-b.size * (b.last - b.first + 1), b.first),
        lambda b: (b.first, -b.size),
        lambda b: (b.first - b.last, -b.size),
    ]
    best: tuple[int, list[int]] | None = None
    for order in orders:
        offsets = _place_in_order(
            blocks, sorted(range(len(blocks)), key=lambda k: order(blocks[k]))
        )
        peak = max((o + b.size for o, b in zip(offsets, blocks, strict=True)), default=0)
        if best is None or peak < best[0]:
            best = peak, offsets
        if peak == bound:
            break
    assert best is not None
    for block, offset in zip(blocks, best[1], strict=True):
        block.offset = offset
    return best[0]


def _place_in_order(blocks: list[Block], order: list[int]) -> list[int]:
    """Best fit: each block in the smallest gap that holds it among those alive with it."""
    offsets = [0] * len(blocks)
    first = np.array([blocks[k].first for k in order])
    last = np.array([blocks[k].last for k in order])
    size = np.array([blocks[k].size for k in order])
    start = np.zeros(len(order), np.int64)
    for n in range(len(order)):
        near = (first[:n] <= last[n]) & (last[:n] >= first[n])
        begins, ends = start[:n][near], (start[:n] + size[:n])[near]
        start[n] = _best_gap(begins, ends, int(size[n]))
        offsets[order[n]] = int(start[n])
    return offsets


def _best_gap(begins: NDArray[np.int64], ends: NDArray[np.int64], wanted: int) -> int:
    if not len(begins):
        return 0
    order = np.argsort(begins, kind="stable")
    reach = np.maximum.accumulate(ends[order])
    gaps_at = np.concatenate(([0], reach[:-1]))
    gaps = begins[order] - gaps_at
    fitting = np.nonzero(gaps >= wanted)[0]
    if len(fitting):
        return int(gaps_at[fitting[np.argmin(gaps[fitting])]])
    return int(reach[-1])
