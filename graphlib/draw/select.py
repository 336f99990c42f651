"""Parts of a graph: what is near a tensor, and what lies between two."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from yupana.graphlib.errors import GraphError, SettingError
from yupana.graphlib.graph import Graph
from yupana.graphlib.tensor import Tensor

Which = str | Tensor


class Part(NamedTuple):
    """Some tensors of a graph, those that were asked for, and whether it goes on beyond it."""

    tensors: set[Tensor]
    marked: set[Tensor]
    is_excerpt: bool


def neighbourhood(graph: Graph, around: Which, depth: int) -> Part:
    """Tensors up to `depth` arrows away, with or against the arrows.

    Leaves are reached and not passed through: everything reads the positions, or the step's
    settings.

    Raises:
        GraphError: the graph has no such tensor. SettingError: `depth` is negative.
    """
    if depth < 0:
        raise SettingError(f"draw: depth: got {depth}, want at least 0.")
    readers = _readers(graph)
    centre = find_tensors(graph, around)
    found, edge = set(centre), centre
    for distance in range(depth):
        near: dict[Tensor, None] = {}
        for tensor in edge:
            if distance == 0 or not tensor.is_leaf:
                near.update(dict.fromkeys((*tensor.srcs, *readers[tensor])))
        edge = [tensor for tensor in near if tensor not in found]
        found.update(edge)
    return Part(found, set(centre), True)


def between(graph: Graph, ends: Sequence[Which]) -> Part:
    """Tensors on the paths from one of two tensors to the other, whichever comes first.

    Raises:
        GraphError: the graph has no such tensor, or no path. SettingError: not two.
    """
    if isinstance(ends, str) or len(ends) != 2:
        raise SettingError(f"draw: between: got {ends!r}, want the names of two tensors.")
    a, b = (find_tensors(graph, end) for end in ends)
    readers = _readers(graph)
    sources = {node: node.srcs for node in graph.nodes}
    for first, last in ((a, b), (b, a)):
        found = _reached(first, readers) & _reached(last, sources)
        if found:
            return Part(found, found.intersection([*a, *b]), False)
    raise GraphError(
        f"draw: no path: got {_named(ends[0])} and {_named(ends[1])}, want one of them computed "
        "from the other."
    )


def find_tensors(graph: Graph, which: Which) -> list[Tensor]:
    """The tensor of that name, or those whose names go on with a dot: weight and bias of blk.0.wq.

    Raises:
        GraphError: there is none.
    """
    tensors = [*graph.leaves, *graph.nodes]
    if isinstance(which, Tensor):
        if which in set(tensors):
            return [which]
        raise GraphError(f"draw: {which.label} is not part of the graph.")
    exact = [t for t in tensors if t.name == which != ""]
    longer = [t for t in tensors if which and t.name.startswith(f"{which}.")]
    # Gradients are called after their parameters, which are what is meant.
    found = exact or [t for t in longer if t.is_leaf] or longer
    if found:
        return found
    names = sorted({t.name for t in tensors if t.name})
    close = difflib.get_close_matches(which, names, 3, 0.5) or names[:5]
    raise GraphError(
        f"draw: no tensor of that name in the graph: got {which!r}, want one such as "
        f"{', '.join(close) or 'a Tensor: none has a name'}."
    )


def _readers(graph: Graph) -> Mapping[Tensor, list[Tensor]]:
    readers: dict[Tensor, list[Tensor]] = defaultdict(list)
    for node in graph.nodes:
        for src in node.srcs:
            readers[src].append(node)
    return readers


def _reached(starts: Iterable[Tensor], following: Mapping[Tensor, Sequence[Tensor]]) -> set[Tensor]:
    found = set(starts)
    stack = list(found)
    while stack:
        for tensor in following.get(stack.pop(), ()):
            if tensor not in found:
                found.add(tensor)
                stack.append(tensor)
    return found


def _named(which: Which) -> str:
    return repr(which) if isinstance(which, str) else which.label
