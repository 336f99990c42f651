"""How `linear_cross_entropy` and its gradients run: piece by piece, through one workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yupana.graphlib.context import aligned
from yupana.graphlib.dtypes import f64
from yupana.graphlib.kernels.blocks import View, contiguous_strides
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.loss import cross_entropy
from yupana.graphlib.kernels.reduce import finish_sum
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import REGISTRY, Matmul, Operand, Site
from yupana.graphlib.ops._rules import view, wide_dtype

AT: Mapping[str, int] = {"x": 0, "w": 1, "x2": 3, "w2": 4}  # place among the sources

real: Any = float  # in formulas the type computed in, which a kernel binds


def _is_counted(label, p0, p1, p2, p3):
    return real(1) if label >= real(0) else real(0)


def _share_of(g, n, total, p0, p1, p2, p3):
    return g * n / total if total > real(0) else real(0)


_counts, _share = Map(_is_counted, 1), Map(_share_of, 3)


@dataclass(slots=True)
class _Part:
    """What `lower` of a product sees of one piece."""

    dsts: tuple[Operand, ...]
    srcs: tuple[Operand, ...]
    memory: _Memory
    matmul: Matmul
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dst(self) -> Operand:
        return self.dsts[0]

    def workspace(self, nbytes: int) -> int:
        return self.memory.take(nbytes)


@dataclass(slots=True)
class _Memory:
    """Workspace that pieces use one after the other."""

    base: int
    matmul: Matmul  # of the site
    used: int = 0
    most: int = 0

    def take(self, nbytes: int) -> int:
        address = self.base + self.used
        self.used += aligned(nbytes)
        self.most = max(self.most, self.used)
        return address


def _doubles(address: int, *shape: int) -> View:
    return View(address, shape, (8,) * len(shape), f64.code, 8)


def _at(x: View, k: int) -> View:
    return _doubles(x.address + 8 * k)


def _rows(x: Operand, first: int, n: int) -> Operand:
    return Operand(x.address + first * x.strides[0], (n, *x.shape[1:]), x.strides, x.dtype)


def _turned(x: Operand) -> Operand:
    return Operand(x.address, x.shape[::-1], x.strides[::-1], x.dtype)


def _product(name: str, dst: Operand, memory: _Memory, *srcs: Operand) -> list[Step]:
    lower = REGISTRY[name].lower
    assert lower is not None
    return lower(_Part((dst,), srcs, memory, memory.matmul))


def linear_loss_steps(
    site: Site,
    srcs: Sequence[Operand],
    chunk: int,
    loss: Operand | None,
    grads: Mapping[str, Operand],
    seed: Operand | None = None,
) -> list[Step]:
    """Steps for the loss, for `seed` times its gradients, or for all of them in one sweep.

    Logits are computed once, become their own gradient where they lie, and give way to those of
    the next `chunk` rows. The loss and gradients of one graph may be fused if the sources are the
    same and `seed` does not depend on the loss.
    """
    targets = srcs[2]
    n = targets.shape[0]
    memory = _Memory(site.workspace(0), site.matmul)
    starts = range(0, max(n, 1), chunk)
    losses, parts = (_doubles(memory.take(8 * len(starts)), len(starts)) for _ in range(2))
    steps, weights = _weights(targets, starts, memory)
    seeds = _doubles(memory.take(8 * len(starts)), len(starts))
    if seed is not None:
        steps += _share.steps(seeds, [view(seed), *weights])
    kept = memory.used
    for c, first in enumerate(starts):
        memory.used, rows = kept, min(chunk, n - first)
        logits, computing = _logits(srcs, first, rows, memory)
        steps += computing
        steps += cross_entropy(
            view(logits),
            view(_rows(targets, first, rows)),
            None,
            -1,
            memory.take,
            loss=_at(losses, c) if loss else None,
            gradient=view(logits) if grads else None,
            seed=_at(seeds, c) if grads else None,
        )
        for of, dst in grads.items():
            steps += _gradient_steps(of, dst, logits, srcs, first, memory)
    if loss is not None:
        steps += _share.steps(parts, [losses, *weights])
        steps.append(finish_sum(view(loss), len(starts), 1.0, parts.address))
    site.workspace(memory.most)
    return steps


def _logits(
    srcs: Sequence[Operand], first: int, n: int, memory: _Memory
) -> tuple[Operand, list[Step]]:
    """Where the logits of `n` rows lie, and the steps that compute them."""
    x, w, _, *pair = srcs
    shape, dtype = (n, w.shape[0]), wide_dtype(x)
    address = memory.take(n * w.shape[0] * dtype.itemsize)
    logits = Operand(address, shape, contiguous_strides(shape, dtype.itemsize), dtype)
    steps = _product("mul_mat", logits, memory, w, _rows(x, first, n))
    if pair:
        steps += _product("mul_mat", logits, memory, pair[1], _rows(pair[0], first, n), logits)
    return logits, steps


def _weights(targets: Operand, starts: range, memory: _Memory) -> tuple[list[Step], list[View]]:
    """Steps that count the rows that count, and where the numbers are: of each piece, and of all.

    The mean over a piece has the first over the second as its share of the mean over all.
    """
    n = targets.shape[0]
    flags = _doubles(memory.take(8 * n), n)
    counts = _doubles(memory.take(8 * len(starts)), len(starts))
    total = _doubles(memory.take(8))
    steps = _counts.steps(flags, [view(targets)])
    for c, first in enumerate(starts):
        rows = min(starts.step, n - first)
        steps.append(finish_sum(_at(counts, c), rows, 1.0, flags.address + 8 * first))
    steps.append(finish_sum(total, len(starts), 1.0, counts.address))
    return steps, [counts, total]


def _gradient_steps(
    of: str, dst: Operand, change: Operand, srcs: Sequence[Operand], first: int, memory: _Memory
) -> list[Step]:
    """What one piece of rows gives to one gradient; `change` is that of its logits."""
    n = change.shape[0]
    if of in ("x", "x2"):
        w, dst = srcs[AT[of] + 1], _rows(dst, first, n)
        if w.dtype.is_quantized:  # its rows cannot be looked at as columns
            return _product("out_prod", dst, memory, w, _turned(change))
        return _product("mul_mat", dst, memory, _turned(w), change)
    x = _rows(srcs[AT[of] - 1], first, n)
    before = [dst] if first else []  # what the pieces before have given
    return _product("mul_mat", dst, memory, _turned(x), _turned(change), *before)
