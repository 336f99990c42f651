"""The slow executor: any recorded graph, node by node, in NumPy and float64.

It knows nothing of kernels, plans or evaluation orders, so it can judge them: every node goes
through its record's `reference`, in the order of recording, and views look at the memory of
their root, so that a write through one tensor is seen by all that share its memory.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.dtypes import from_storage, to_storage
from yupana.graphlib.errors import GraphError, ShapeError
from yupana.graphlib.op import Array, as_float64
from yupana.graphlib.tensor import Tensor

if TYPE_CHECKING:
    from yupana.graphlib.graph import Graph

# What to store instead of a float value that a leaf or a node has; the checks imitate rounding.
Rounding = Callable[[Tensor, Array], Array]


def run_reference(
    outputs: Graph | Tensor | Sequence[Tensor],
    feeds: Mapping[Tensor, ArrayLike] | None = None,
    *,
    write_back: bool = False,
    rounding: Rounding | None = None,
    precision: type[np.floating[Any]] = np.float64,
) -> dict[Tensor, Array]:
    """Compute `outputs` and all they depend on, in float64 (integers in int64).

    Args:
        outputs: a graph, a tensor or several.
        feeds: values of leaves to use instead of those they hold.
        write_back: leaves that the graph writes to (optimiser steps, `cpy`) keep the new values;
            otherwise no leaf changes.
        rounding: called as (tensor, value) for every float leaf and result; what it returns is
            stored. None keeps all digits.
        precision: what float values are stored and computed in: float32 shows what rounding
            does to the formulas.
    Returns:
        The value of every tensor met, as it is at the end of the run.
    Raises:
        GraphError: a fed tensor is no leaf, or a reference contradicts its rule.
        ShapeError: a fed value has another shape than its leaf.

    >>> import yupana as yp
    >>> x = yp.tensor([1.0, 2.0])
    >>> y = (x * x).sum()
    >>> float(run_reference(y)[y]), float(run_reference(y, {x: [3.0, 4.0]})[y])
    (5.0, 25.0)
    """
    if isinstance(outputs, Tensor):
        wanted: Sequence[Tensor] = [outputs]
    else:
        wanted = outputs if isinstance(outputs, Sequence) else outputs.outputs
    run = _Run(feeds or {}, rounding, precision)
    with np.errstate(all="ignore"):  # infinities and NaN are results like others
        for node in recorded_order(wanted):
            run.compute(node)
        values = {t: run.value(t) for t in (*run.memory, *run.seen, *wanted)}
    if write_back:
        for leaf in run.written:
            leaf.data[...] = to_storage(values[leaf], leaf.dtype)
    return values


def recorded_order(outputs: Iterable[Tensor]) -> list[Tensor]:
    """What `outputs` need, in the order of recording, each node after its sources.

    Only gradient checkpointing lets a node read what was recorded after it.
    """
    readers: dict[Tensor, list[Tensor]] = {}
    waiting: dict[Tensor, int] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.op is None or node in waiting:
            continue
        needs = {src for src in node.srcs if src.op is not None}
        waiting[node] = len(needs)
        for src in needs:
            readers.setdefault(src, []).append(node)
        stack.extend(needs)
    number = itertools.count()  # a clone shares its sequence with the node it stands for
    free = [node for node, count in waiting.items() if count == 0]
    ready = [(node.sequence, next(number), node) for node in free]
    heapq.heapify(ready)
    order = []
    while ready:
        _, _, node = heapq.heappop(ready)
        order.append(node)
        for reader in readers.get(node, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, (reader.sequence, next(number), reader))
    return order


class _Run:
    """Memory of one run: the elements of every root, flat."""

    def __init__(
        self,
        feeds: Mapping[Tensor, ArrayLike],
        rounding: Rounding | None,
        precision: type[np.floating[Any]],
    ) -> None:
        self._rounding = rounding
        self._precision = precision
        self.memory: dict[Tensor, Array] = {}
        self.seen: list[Tensor] = []  # nodes that are views or write into another's memory
        self.written: list[Tensor] = []  # leaves
        for leaf, values in feeds.items():
            if not leaf.is_leaf:
                raise GraphError(f"run_reference: can feed leaves only: got {leaf.label}")
            if np.shape(values) != leaf.shape:
                raise ShapeError(
                    f"run_reference: fed value does not fit {leaf.label}: got "
                    f"{np.shape(values)}, want {leaf.shape}"
                )
            self._store(leaf, np.asarray(values))

    def value(self, tensor: Tensor) -> Array:
        """Its elements now: a view of its root's memory."""
        root = tensor.root
        if root not in self.memory:
            self._store(root, from_storage(root.data, root.dtype))
        memory, dtype = self.memory[root], tensor.dtype
        if tensor is root:
            return memory.reshape(tensor.shape)
        if tensor.size == 0:
            return np.zeros(tensor.shape, memory.dtype)
        steps = [s // dtype.itemsize * dtype.block * memory.itemsize for s in tensor.strides]
        if dtype.is_quantized:
            steps[-1] = memory.itemsize  # the stride in bytes leads from block to block
        start = tensor.view_offset // dtype.itemsize * dtype.block * memory.itemsize
        return np.ndarray(tensor.shape, memory.dtype, memory, start, tuple(steps))

    def compute(self, node: Tensor) -> None:
        """Run one node's reference; a view needs none."""
        op = node.op
        assert op is not None
        if op.is_view:
            self.value(node.srcs[0])  # has its root loaded, if that is a leaf
            self.seen.append(node)
            return
        result = op.reference(*map(self._read, node.srcs), **node.params)
        if not op.mutates:
            self._store(node, _in_levels(node, self._checked(node, node.shape, result)))
            return
        self.seen.append(node)
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(op.mutates):
            raise GraphError(
                f"{op.name}: its reference returned {len(results)} arrays, want one for each of "
                f"the sources it writes: {len(op.mutates)}"
            )
        # All of them before the first write: they may share memory with what is written.
        new = [
            np.array(self._rounded(src, _in_levels(src, self._checked(node, src.shape, values))))
            for src, values in zip((node.srcs[k] for k in op.mutates), results, strict=True)
        ]
        for k, values in zip(op.mutates, new, strict=True):
            self.value(node.srcs[k])[...] = values
            if node.srcs[k].root.is_leaf:
                self.written.append(node.srcs[k].root)

    def _read(self, src: Tensor) -> Array:
        values = self.value(src).view()
        values.flags.writeable = False  # a reference that writes to its arguments shows here
        return values

    def _store(self, root: Tensor, values: Array) -> None:
        kind = self._precision if root.dtype.is_real else np.int64
        # A copy, always: the reference of a node may return one of its sources.
        self.memory[root] = np.array(self._rounded(root, values), kind).reshape(-1)

    def _rounded(self, tensor: Tensor, values: Array) -> Array:
        if self._rounding is None or not tensor.dtype.is_real:
            return values
        return self._rounding(tensor, as_float64(values))

    @staticmethod
    def _checked(node: Tensor, shape: tuple[int, ...], values: Any) -> Array:
        array = np.asarray(values)
        if array.shape != shape:
            assert node.op is not None
            raise GraphError(
                f"{node.op.name}: its reference returned shape {array.shape}, want {shape} as "
                "its rule says"
            )
        return array


def _in_levels(tensor: Tensor, values: Array) -> Array:
    """What is left of a result in a quantised type or as whole numbers, which are far apart."""
    if tensor.dtype.is_float:
        return values
    return from_storage(to_storage(values, tensor.dtype), tensor.dtype)
