"""Fusion: groups of neighbouring nodes that one kernel computes, without what lies between.

Each pattern looks at one node as the last of a group and returns the group's task, or None.
Users still see their own nodes; only programs run groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yupana.graphlib.dtypes import f32
from yupana.graphlib.kernels.softmax import (
    causal_soft_max_steps,
    soft_max_back_steps,
    soft_max_steps,
)
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Site
from yupana.graphlib.ops._linear_loss import linear_loss_steps
from yupana.graphlib.ops._rules import view
from yupana.graphlib.ops.gates import silu_mul_back_steps, silu_mul_steps
from yupana.graphlib.ops.loss import loss_and_gradient_steps
from yupana.graphlib.ops.norm import (
    add_rms_norm_steps,
    rms_norm_mul_back_steps,
    rms_norm_mul_steps,
)
from yupana.graphlib.order import writers_by_root
from yupana.graphlib.task import Task, single
from yupana.graphlib.tensor import Tensor


def find_groups(nodes: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Task]:
    """Groups that run as one, each node in at most one of them."""
    uses = _Uses(nodes, outputs)
    groups: list[Task] = []
    taken: set[Tensor] = set()
    for pattern in PATTERNS:
        for node in nodes:
            if node in taken or node.op is None:
                continue
            group = pattern(node, uses)
            if group is None or taken.intersection(group.nodes) or uses.is_written(group):
                continue
            groups.append(group)
            taken.update(group.nodes)
    return groups


class _Uses:
    """Who reads and who writes what, in one graph."""

    def __init__(self, nodes: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._outputs = {output.root for output in outputs} | set(outputs)
        self._readers: dict[Tensor, list[Tensor]] = {}
        self._writers = writers_by_root(nodes)
        for node in nodes:
            for src in dict.fromkeys(node.srcs):
                self._readers.setdefault(src, []).append(node)

    def readers(self, tensor: Tensor) -> list[Tensor]:
        return self._readers.get(tensor, [])

    def only_inside(self, tensor: Tensor, op: str) -> bool:
        """Whether `tensor` is a result of `op` that a single node reads."""
        return _is(tensor, op) and self.is_inside(tensor)

    def is_inside(self, tensor: Tensor) -> bool:
        """Whether a single node reads `tensor`, and nobody outside the graph."""
        return tensor not in self._outputs and len(self.readers(tensor)) == 1

    def is_written(self, group: Task) -> bool:
        """Whether somebody writes to a source of a group between its first and last node."""
        first = min(node.sequence for node in group.nodes)
        last = max(node.sequence for node in group.nodes)
        return any(
            first < writer.sequence < last
            for src in group.srcs
            for writer in self._writers.get(src.root, ())
        )


def _is(tensor: Tensor, op: str) -> bool:
    return tensor.op is not None and tensor.op.name == op


@dataclass(frozen=True, slots=True)
class _Steps:
    """Lowers a group by a function of the views of results and sources, and of constants."""

    make: Callable[..., list[Step]]
    constants: tuple[Any, ...] = ()

    def __call__(self, site: Site) -> list[Step]:
        views = [view(operand) for operand in (*site.dsts, *site.srcs)]
        return self.make(*views, *self.constants)


def _soft_max(node: Tensor, uses: _Uses) -> Task | None:
    """scale, diag_mask_inf, soft_max in one pass; either of the first two may be missing."""
    if not _is(node, "soft_max") or len(node.srcs) != 1:
        return None
    nodes, x, factor, n_past = [node], node.srcs[0], node.params["scale"], None
    if factor > 0 and uses.only_inside(x, "diag_mask_inf"):
        nodes.append(x)
        n_past, x = x.params["n_past"], x.srcs[0]
    if uses.only_inside(x, "scale"):
        nodes.append(x)
        factor, x = factor * x.params["s"], x.srcs[0]
    if len(nodes) == 1 or x.dtype is not node.dtype:
        return None
    if n_past is None:
        lower = _Steps(lambda dst, src, s: soft_max_steps(dst, src, None, s), (factor,))
    else:
        lower = _Steps(causal_soft_max_steps, (factor, n_past))
    return Task(tuple(reversed(nodes)), (x,), (node,), lower, inplace=(0,))


def _soft_max_back(node: Tensor, uses: _Uses) -> Task | None:
    """soft_max_back, diag_mask_zero, scale: the gradient of the group above."""
    nodes, x, factor, n_past = [node], node, 1.0, None
    if _is(node, "diag_mask_zero") and uses.is_inside(node):
        (reader,) = uses.readers(node)
        if _is(reader, "scale"):
            return None  # which will be the last of the group
    if _is(x, "scale"):
        factor, x = x.params["s"], x.srcs[0]
        if not (uses.only_inside(x, "diag_mask_zero") or uses.only_inside(x, "soft_max_back")):
            return None
        nodes.append(x)
    if _is(x, "diag_mask_zero"):
        n_past, x = x.params["n_past"], x.srcs[0]
        if not uses.only_inside(x, "soft_max_back"):
            return None
        nodes.append(x)
    if len(nodes) == 1 or not _is(x, "soft_max_back"):
        return None
    g, y = x.srcs
    factor *= x.params["scale"]
    if n_past is not None and not _hides(y, n_past):
        return None
    if len({t.dtype for t in (*nodes, g, y)}) > 1:
        return None
    lower = _Steps(soft_max_back_steps, (factor,))
    return Task(tuple(reversed(nodes)), (g, y), (node,), lower, inplace=(0, 1))


def _hides(y: Tensor, n_past: int) -> bool:
    """Whether `y` is zero beyond the diagonal, so that masking its gradient changes nothing."""
    if not _is(y, "soft_max") or len(y.srcs) != 1:
        return False
    masked = y.srcs[0]
    return _is(masked, "diag_mask_inf") and masked.params["n_past"] == n_past


def _is_row(w: Tensor, x: Tensor) -> bool:
    return w.ndim == 1 and x.ndim >= 1 and w.shape[-1] == x.shape[-1] and x.size > 0


def _rms_norm_mul(node: Tensor, uses: _Uses) -> Task | None:
    if not _is(node, "mul"):
        return None
    for norm, w in (node.srcs, node.srcs[::-1]):
        if uses.only_inside(norm, "rms_norm") and _is_row(w, norm) and norm.dtype is node.dtype:
            lower = _Steps(rms_norm_mul_steps, (norm.params["eps"],))
            return Task((norm, node), (norm.srcs[0], w), (node,), lower, inplace=(0,))
    return None


def _rms_norm_mul_back(node: Tensor, uses: _Uses) -> Task | None:
    if not _is(node, "rms_norm_back") or not uses.only_inside(node.srcs[1], "mul"):
        return None
    x, product = node.srcs
    for g, w in (product.srcs, product.srcs[::-1]):
        fits = g.shape == product.shape == x.shape and g.dtype is product.dtype is node.dtype
        if fits and _is_row(w, x):
            lower = _Steps(rms_norm_mul_back_steps, (node.params["eps"],))
            return Task((product, node), (x, w, g), (node,), lower, inplace=(0, 2))
    return None


def _add_rms_norm(node: Tensor, uses: _Uses) -> Task | None:
    """The sum stays readable: it is the residual that others go on from."""
    if not _is(node, "rms_norm") or not _is(node.srcs[0], "add") or not node.ndim:
        return None
    total = node.srcs[0]
    if any(t.shape != node.shape or t.dtype is not f32 for t in (*total.srcs, total)):
        return None
    lower = _Steps(add_rms_norm_steps, (node.params["eps"],))
    return Task((total, node), total.srcs, (node, total), lower)


def _silu_mul(node: Tensor, uses: _Uses) -> Task | None:
    if not _is(node, "mul"):
        return None
    for gate, b in (node.srcs, node.srcs[::-1]):
        if uses.only_inside(gate, "silu") and gate.shape == node.shape and gate.dtype is node.dtype:
            lower = _Steps(silu_mul_steps)
            return Task((gate, node), (gate.srcs[0], b), (node,), lower, inplace=(0, 1))
    return None


def _silu_mul_back(node: Tensor, uses: _Uses) -> Task | None:
    if not _is(node, "silu_back") or not uses.only_inside(node.srcs[1], "mul"):
        return None
    a, product = node.srcs
    g, b = product.srcs
    if any(t.shape != node.shape or t.dtype is not node.dtype for t in (a, product, g, b)):
        return None
    lower = _Steps(silu_mul_back_steps)
    return Task((product, node), (a, b, g), (node,), lower, inplace=(0, 1, 2))


def _residual(node: Tensor, uses: _Uses) -> Task | None:
    """mul_mat and the sum with what went around it."""
    if not _is(node, "add"):
        return None
    for product, rest in (node.srcs, node.srcs[::-1]):
        fits = product.shape == rest.shape and product.dtype is rest.dtype is f32
        if fits and product is not rest and uses.only_inside(product, "mul_mat"):
            lower = single(product).lower
            srcs = (*product.srcs, rest)
            return Task((product, node), srcs, (node,), lower, inplace=(2,))
    return None


def _loss_and_gradient(node: Tensor, uses: _Uses) -> Task | None:
    if not _is(node, "cross_entropy_loss"):
        return None
    ignore = node.params["ignore_index"]

    def lower(site: Site) -> list[Step]:
        gradient, loss = (view(dst) for dst in site.dsts)
        *sources, seed = (view(src) for src in site.srcs)
        return loss_and_gradient_steps(loss, gradient, seed, tuple(sources), ignore, site.workspace)

    for back in uses.readers(node.srcs[0]):
        same = _is(back, "cross_entropy_loss_back") and back.srcs[1:] == node.srcs
        if same and back.params == node.params and back.srcs[0].root.is_leaf:
            srcs = (*node.srcs, back.srcs[0])
            return Task((node, back), srcs, (back, node), lower, inplace=(0,))
    return None


def _linear_loss(node: Tensor, uses: _Uses) -> Task | None:
    """The loss with all of its gradients, so that logits are computed once."""
    if not _is(node, "linear_cross_entropy"):
        return None
    backs = [
        back
        for back in uses.readers(node.srcs[0])
        if _is(back, "linear_cross_entropy_back")
        and back.srcs[1:] == node.srcs
        and back.params["chunk"] == node.params["chunk"]
        and back.srcs[0].root.is_leaf
    ]
    if not backs or any(back.srcs[0] is not backs[0].srcs[0] for back in backs):
        return None
    names, chunk = [back.params["of"] for back in backs], node.params["chunk"]

    def lower(site: Site) -> list[Step]:
        loss, *grads = site.dsts
        *sources, seed = site.srcs
        of = dict(zip(names, grads, strict=True))
        return linear_loss_steps(site, sources, chunk, loss, of, seed)

    return Task((node, *backs), (*node.srcs, backs[0].srcs[0]), (node, *backs), lower)


PATTERNS: tuple[Callable[[Tensor, _Uses], Task | None], ...] = (
    _soft_max,
    _soft_max_back,
    _rms_norm_mul_back,
    _silu_mul_back,
    _loss_and_gradient,
    _linear_loss,
    _residual,
    _rms_norm_mul,
    _silu_mul,
    _add_rms_norm,
)
