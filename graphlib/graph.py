"""Graph: everything a set of tensors is computed from, in the order it will run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yupana.graphlib.autograd import Gradients, gradients
from yupana.graphlib.budget import Checkpoints
from yupana.graphlib.errors import GraphError
from yupana.graphlib.memory import Plan
from yupana.graphlib.op import Matmul
from yupana.graphlib.order import Order, evaluation_order
from yupana.graphlib.program import Program, prepare
from yupana.graphlib.tensor import Tensor


class Graph:
    """The recorded operations that `outputs` need, in evaluation order.

    Args:
        outputs: what shall be readable after a run.
        order: which source of a node is computed first, "left" or "right", where both are
            possible. None: programs take the order whose plan needs less memory.

    >>> import yupana as yp
    >>> w = yp.Context().param((2,), name="w").set([3.0, 4.0])
    >>> loss = (w * w).sum()
    >>> graph = Graph(loss)
    >>> grads = graph.backward(loss)
    >>> graph.compile(threads=1).run()
    >>> loss.item(), grads[w].numpy()
    (25.0, array([6., 8.], dtype=float32))
    """

    def __init__(self, outputs: Tensor | Sequence[Tensor], order: Order | None = None) -> None:
        if order not in ("left", "right", None):
            raise GraphError(f"Graph: got order {order!r}, want 'left', 'right' or None")
        self.order = order
        self.outputs: list[Tensor] = []
        self._nodes: list[Tensor] | None = None
        if isinstance(outputs, Tensor) or not isinstance(outputs, Iterable):
            outputs = [outputs]
        self.expand(*outputs)

    def expand(self, *outputs: Tensor) -> Graph:
        """Add outputs, and with them what they need; returns itself."""
        known = set(self.outputs)
        for output in outputs:
            if not isinstance(output, Tensor):
                raise GraphError(f"Graph: got {type(output).__name__} as output, want a Tensor.")
            if output not in known:
                known.add(output)
                self.outputs.append(output)
        self._nodes = None
        return self

    def backward(self, loss: Tensor, checkpoints: Checkpoints = None) -> Gradients:
        """Add the gradients of `loss` with respect to every parameter it depends on.

        Args:
            loss: one element.
            checkpoints: forward tensors to keep; what lies between them is computed again when
                the backward pass needs it. "all" keeps layer boundaries, "sqrt" about the square
                root of their number, `MemoryBudget` as much as fits; None keeps everything.
        Returns:
            A mapping from each parameter to its gradient; the gradients become outputs.
        Raises:
            GradientError: `loss` is not one element or depends on no parameter, or an op on the
                path to a parameter has no gradient.
            GraphError: a checkpoint that is not part of the graph.
            MemoryBudgetError: no choice of checkpoints fits.
        """
        grads = gradients(loss, checkpoints, self.order)
        self.expand(loss, *grads.values())
        return grads

    @property
    def nodes(self) -> list[Tensor]:
        """Every recorded operation, each after those it depends on."""
        if self._nodes is None:
            self._nodes = evaluation_order(self.outputs, self.order or "left")
        return self._nodes

    @property
    def leaves(self) -> list[Tensor]:
        """Tensors with data that the nodes read, in the order they are first read."""
        found: dict[Tensor, None] = {}
        for node in self.nodes:
            for src in node.srcs:
                if src.root.is_leaf:
                    found[src.root] = None
        for output in self.outputs:
            if output.root.is_leaf:
                found[output.root] = None
        return list(found)

    def plan(self, fuse: bool = True, reuse: bool = True) -> Plan:
        """Where every intermediate result will lie; see `yupana.graphlib.memory`."""
        return prepare(self, fuse, reuse).plan

    def compile(
        self,
        threads: int | None = None,
        fuse: bool = True,
        reuse: bool = True,
        matmul: Matmul = "f32",
    ) -> Program:
        """A program that computes the outputs; see `yupana.graphlib.program`.

        Args:
            threads: how many threads share the work; None: as many as the work is worth, at
                most `YUPANA_THREADS` or the number of cores.
            fuse: replace neighbouring nodes by faster joint kernels.
            reuse: let results share memory where their lives do not overlap.
            matmul: "bf16" rounds what larger matrix products multiply to eight bits of precision
                (sums stay float32). Processors with AVX-512 BF16 do that twice as fast, others
                slower. Of the gradients as well; float64 stays as it is.
        """
        if matmul not in ("f32", "bf16"):
            raise GraphError(f"compile: matmul: got {matmul!r}, want 'f32' or 'bf16'")
        return Program(prepare(self, fuse, reuse, matmul), threads)

    def draw(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Draw it as .svg, .png, .pdf or .dot; see `yupana.graphlib.draw.draw_graph`."""
        from yupana.graphlib.draw import draw_graph

        return draw_graph(self, path, **options)

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.nodes)

    def __repr__(self) -> str:
        return f"<Graph of {len(self.nodes)} nodes, {len(self.outputs)} outputs>"

    def __str__(self) -> str:
        from yupana.graphlib.draw import show_graph

        return show_graph(self)

    def _repr_svg_(self) -> str | None:
        from yupana.graphlib.draw import graph_svg

        return graph_svg(self)
