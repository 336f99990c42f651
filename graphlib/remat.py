"""Gradient checkpointing: keep few forward results, compute the rest again when needed.

The backward pass reads forward results. With checkpoints, it reads clones instead, computed
from the nearest checkpoints; each node is cloned at most once, and only if the backward pass
needs it. The evaluation order places a clone right before its first use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from yupana.graphlib.errors import GraphError
from yupana.graphlib.order import Order, evaluation_order, writers_by_root
from yupana.graphlib.tensor import Tensor


class Remat:
    """What a graph does beyond its forward pass, which can be made to read clones, and set back.

    Args:
        loss: the end of the forward pass; it is kept in any case.
        outputs: gradients, updates: what the rest of the graph is computed for.
        order: see `Graph`.

    Attributes:
        forward: the nodes of the forward pass.
    """

    def __init__(self, loss: Tensor, outputs: Iterable[Tensor], order: Order = "left") -> None:
        self._loss = loss
        self.forward = evaluation_order([loss], order)
        known = set(self.forward)
        rest = [node for node in evaluation_order(outputs, order) if node not in known]
        self._as_recorded = [(node, node.srcs, node.view_src) for node in rest]
        self._cloner = _Cloner(self.forward, known)

    def apply(self, checkpoints: Sequence[Tensor]) -> None:
        """Let the rest read clones of what is not kept, in place of what it read before.

        Raises:
            GraphError: a checkpoint is not part of the forward pass.
        """
        known = {t for node in self.forward for t in (node, *node.srcs)}
        for checkpoint in checkpoints:
            if checkpoint not in known:
                raise GraphError(
                    f"backward: checkpoint {checkpoint.label} is not part of the graph of "
                    f"{self._loss.label}"
                )
        self._cloner = _Cloner(self.forward, {*checkpoints, self._loss})
        for node, srcs, view_src in self._as_recorded:
            node.srcs, node.view_src = srcs, view_src
            self._cloner.redirect(node)

    def source(self, tensor: Tensor) -> Tensor:
        """What is read instead of `tensor`."""
        return self._cloner.source(tensor)

    @property
    def flops(self) -> dict[Tensor, float]:
        """Work of what is computed again, by the node it is computed for again."""
        clones = self._cloner.clones.items()
        return {node: clone.op.cost_of(clone).flops for node, clone in clones if clone.op}


class _Cloner:
    """Clones of forward nodes, made on demand."""

    def __init__(self, forward: list[Tensor], kept: set[Tensor]) -> None:
        # A view of a kept tensor needs no clone, and a view that is kept keeps what it views.
        roots = {t.root for t in kept}
        # Memory that is written in between would be read too late, so what touches it is kept.
        written = writers_by_root(forward)
        self._clonable = {
            n
            for n in forward
            if n.root not in roots
            and not n.root.is_leaf
            and not any(t.root in written for t in (n, *n.srcs))
        }
        self.clones: dict[Tensor, Tensor] = {}
        self._forward = set(forward)

    def redirect(self, node: Tensor) -> None:
        """Let a backward node read clones; a view also lies in the clone's memory."""
        node.srcs = tuple(self.source(src) for src in node.srcs)
        node.view_src = self._view_src(node)

    def source(self, tensor: Tensor) -> Tensor:
        """What to read instead of `tensor`."""
        if tensor not in self._clonable:
            return tensor
        stack = [tensor]
        while stack:  # sources first; without recursion, since chains can be long
            node = stack[-1]
            waiting = [s for s in node.srcs if s in self._clonable and s not in self.clones]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if node not in self.clones:
                self.clones[node] = self._clone(node)
        return self.clones[tensor]

    def _clone(self, node: Tensor) -> Tensor:
        clone = Tensor(
            node.context,
            node.shape,
            node.dtype,
            strides=node.strides,
            op=node.op,
            params=node.params,
            srcs=tuple(self.clones.get(src, src) for src in node.srcs),
            view_src=self._view_src(node),
            view_offset=node.view_offset,
            name=node.name,
            site=node.site,
        )
        clone.role = "recomputed"
        # Like the node it stands for, it reads memory before what is recorded to be written later.
        clone.sequence = node.sequence
        return clone

    def _view_src(self, node: Tensor) -> Tensor | None:
        if node.view_src is None:
            return None
        return self.clones.get(node.view_src, node.view_src)


def choose_checkpoints(forward: list[Tensor]) -> list[Tensor]:
    """About the square root of the number of layer boundaries, evenly spread by bytes."""
    boundaries = find_boundaries(forward)
    total = sum(node.nbytes for node in forward if node.view_src is None)
    wanted = math.isqrt(len(boundaries))
    chosen: list[Tensor] = []
    for k in range(1, wanted + 1):
        target = total * k / (wanted + 1)
        node = min(boundaries, key=lambda b: abs(boundaries[b] - target))
        if node not in chosen:
            chosen.append(node)
    return chosen


def with_the_rest(checkpoints: Sequence[Tensor], forward: list[Tensor]) -> list[Tensor]:
    """Checkpoints, and what lies behind the last one.

    The backward pass begins there: computing that again would cost time and save nothing.
    """
    chosen = set(checkpoints)
    last = max((k for k, node in enumerate(forward) if node in chosen), default=-1)
    return [*checkpoints, *forward[last + 1 :]]


def find_boundaries(forward: list[Tensor]) -> dict[Tensor, int]:
    """Layer boundaries, each with the bytes computed up to there.

    A boundary is a point where a single result crosses from what came before to what follows:
    in a transformer the residual stream between two blocks.
    """
    last_use: dict[Tensor, int] = {}
    for k, node in enumerate(forward):
        for src in node.srcs:
            last_use[src.root] = k
    live: dict[Tensor, None] = {}
    boundaries: dict[Tensor, int] = {}
    total = 0
    for k, node in enumerate(forward):
        root = node.root
        if not root.is_leaf and last_use.get(root, k) > k:
            live[root] = None
        if node.view_src is None:
            total += node.nbytes
        for old in [t for t in live if last_use[t] <= k]:
            del live[old]
        if len(live) == 1 and node.view_src is None and node in live:
            boundaries[node] = total
    return boundaries
