"""The order in which recorded operations run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from yupana.graphlib.tensor import Tensor

Order = Literal["left", "right"]  # which source of a node is computed first


def evaluation_order(
    outputs: Iterable[Tensor],
    order: Order = "left",
    groups: Mapping[Tensor, tuple[Tensor, ...]] | None = None,
) -> list[Tensor]:
    """Post-order of what `outputs` need, with writes into shared memory where they belong.

    A node that writes into the memory of a leaf or of another result (cpy, optimiser steps) runs
    after the readers of that memory recorded before it, and before those recorded after it.
    `groups` maps nodes that run as one to all nodes of their group; the last stands for it.
    """
    groups = groups or {}
    outputs = list(outputs)
    found = _reachable(outputs)
    after = _write_order(found)
    done: set[Tensor] = set()
    nodes: list[Tensor] = []
    stack: list[tuple[Tensor, Iterator[Tensor]]] = []

    def enter(node: Tensor) -> None:
        if node.op is None or node in done:
            return
        members = groups.get(node, (node,))
        done.update(members)
        first = [s for member in members for s in _visit_first(member, after, order)]
        stack.append((members[-1], iter(first)))

    # Updates run in the order of the backward pass, whatever order they are listed in: each
    # gradient then dies young.
    for output in sorted(outputs, key=_recorded):
        enter(output)
        while stack:
            node, rest = stack[-1]
            following = next(rest, None)
            if following is not None:
                enter(following)
            else:
                stack.pop()
                nodes.append(node)
    return _hoist_writes(nodes, after, groups)


def _recorded(output: Tensor) -> int:
    """When the last thing an output is computed from was recorded."""
    return max((src.sequence for src in output.srcs if src.op), default=output.sequence)


def _visit_first(node: Tensor, after: Mapping[Tensor, list[Tensor]], order: Order) -> list[Tensor]:
    srcs = node.srcs if order == "left" else node.srcs[::-1]
    # What is computed again for the backward pass comes last, as close to its use as possible.
    return [*sorted(srcs, key=lambda src: src.role == "recomputed"), *after.get(node, ())]


def _reachable(outputs: Iterable[Tensor]) -> list[Tensor]:
    found: dict[Tensor, None] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.op is not None and node not in found:
            found[node] = None
            stack.extend(node.srcs)
    return list(found)


def writers_by_root(nodes: Iterable[Tensor]) -> dict[Tensor, list[Tensor]]:
    """The nodes that write into memory they do not own (cpy, optimiser steps), by its owner."""
    writers: dict[Tensor, list[Tensor]] = {}
    for node in nodes:
        for k in node.op.mutates if node.op else ():
            writers.setdefault(node.srcs[k].root, []).append(node)
    return writers


def _write_order(nodes: list[Tensor]) -> Mapping[Tensor, list[Tensor]]:
    """For each node, others it must follow because one of them writes what the other touches."""
    writes = writers_by_root(nodes)
    after: dict[Tensor, list[Tensor]] = {}
    if not writes:
        return after
    for node in sorted(nodes, key=lambda n: n.sequence):
        for root in {src.root for src in node.srcs if src.root in writes}:
            for writer in writes[root]:
                if writer.sequence < node.sequence:
                    after.setdefault(node, []).append(writer)
                elif node.sequence < writer.sequence:
                    after.setdefault(writer, []).append(node)
    return after


def _hoist_writes(
    nodes: list[Tensor],
    after: Mapping[Tensor, list[Tensor]],
    groups: Mapping[Tensor, tuple[Tensor, ...]],
) -> list[Tensor]:
    """Move each write up to where all it waits for is done: gradients die right there."""
    if not after:
        return nodes
    position = set(nodes)
    keys: dict[Tensor, tuple[float, int]] = {}
    for k, node in enumerate(nodes):
        assert node.op is not None
        key = (float(k), 0)
        if node.op.mutates:
            needed = (*node.srcs, *after.get(node, ()))
            waits = [n for t in needed if (n := groups.get(t, (t,))[-1]) in position]
            latest = max((keys[src] for src in waits), default=(-1.0, 0))
            key = (latest[0], latest[1] + 1 + k)  # behind what it waits for, in stable order
        keys[node] = key
    return sorted(nodes, key=keys.__getitem__)
