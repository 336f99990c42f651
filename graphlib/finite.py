"""Where NaN and infinities come from: the node that made the first one that matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.dtypes import from_storage
from yupana.graphlib.graph import Graph
from yupana.graphlib.op import Matmul
from yupana.graphlib.order import writers_by_root
from yupana.graphlib.tensor import Tensor


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A tensor with values that are not finite, though what it was computed from is."""

    tensor: Tensor
    n_nan: int
    n_inf: int

    def __str__(self) -> str:
        t = self.tensor
        counts = [f"{n} {kind}" for n, kind in ((self.n_nan, "NaN"), (self.n_inf, "infinite")) if n]
        return f"{_described(t)} {t.shape}: {' and '.join(counts)} of {t.size} values"


def _described(tensor: Tensor) -> str:
    """Its name; without one its op and what that reads, down to names or ops."""
    if tensor.op is None:
        kind = "parameter" if tensor.is_param else "input"
        return f"{kind} {tensor.name}".rstrip()
    if tensor.name:
        return f"{tensor.op.name} {tensor.name}"
    sources = [src.root.name or (src.op.name if src.op else "a leaf") for src in tensor.srcs]
    return f"{tensor.op.name} of {' and '.join(sources)}"


def first_nonfinite(graph: Graph, matmul: Matmul = "f32") -> NonFinite | None:
    """Run a graph once and find what made its outputs NaN or infinite; None if nothing did.

    It starts at the outputs that are not finite and goes back through sources that are not, to
    the first in evaluation order. So minus infinity that a mask puts into attention scores on
    purpose is not taken for a fault: no output depends on it once soft_max has made it 0.

    Every result gets memory of its own, so this takes far more of it than a run. Leaves that the
    graph writes to get their values back.

    Args:
        graph: what is run.
        matmul: as it was compiled; see `Graph.compile`.

    >>> import yupana as yp
    >>> x = yp.tensor([1.0, 0.0], name="x")
    >>> y = x.log().exp()
    >>> print(first_nonfinite(Graph((y * x.log()).sum())))
    log of x (2,): 1 infinite of 2 values
    """
    nodes = [node for node in graph.nodes if node.dtype.is_float]
    before = {leaf: leaf.data.copy() for leaf in writers_by_root(graph.nodes) if leaf.is_leaf}
    found = {leaf: counts for leaf in graph.leaves if (counts := _count_leaf(leaf))}
    everything = Graph([*nodes, *graph.outputs], order=graph.order)
    program = everything.compile(fuse=False, reuse=False, matmul=matmul)
    program.run()
    found |= {node: counts for node in nodes if (counts := _count(program.value(node)))}
    for leaf, values in before.items():
        leaf.data[...] = values
    reached = _leading_to(graph.outputs, found)
    order = {tensor: k for k, tensor in enumerate([*graph.leaves, *everything.nodes])}
    if not reached:
        return None
    first = min(reached, key=order.__getitem__)
    return NonFinite(first, *found[first])


def _leading_to(outputs: list[Tensor], found: dict[Tensor, tuple[int, int]]) -> set[Tensor]:
    """What is not finite and reaches an output through others that are not."""
    reached: set[Tensor] = set()
    stack = list(outputs)
    while stack:
        tensor = stack.pop()
        if tensor in found and tensor not in reached:
            reached.add(tensor)
            stack.extend((*tensor.srcs, tensor.root))
    return reached


def _count_leaf(leaf: Tensor) -> tuple[int, int] | None:
    values: NDArray[Any] = from_storage(leaf.data, leaf.dtype)
    if not leaf.is_param and not np.isnan(values).any() and not np.isposinf(values).any():
        return None  # a mask may hold minus infinity
    return _count(values)


def _count(values: NDArray[np.generic]) -> tuple[int, int] | None:
    """How many are NaN and how many infinite; None for none."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    return int(np.isnan(values).sum()), int(np.isinf(values).sum())
