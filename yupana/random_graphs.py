"""Random graphs for tests: a dozen ops, one after the other, of kinds that models put together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from yupana.graphlib import ops
from yupana.graphlib.sampler import Sampler
from yupana.graphlib.tensor import Tensor


@dataclass
class RandomGraph:
    """A graph under construction.

    `pool` holds what the next operation may start from; `params` are leaves, `loss` comes last.
    """

    d: Sampler
    pool: list[Tensor] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    loss: Tensor | None = None

    def pick(self) -> Tensor:
        """The newest tensor more often than an older one, so that chains grow long."""
        back: int = self.d.choice([0, 0, 0, *range(len(self.pool))])
        return self.pool[-1 - back]

    def leaf(
        self,
        shape: Sequence[int],
        low: float = -2.0,
        high: float = 2.0,
        param: bool = True,
        **options: Any,
    ) -> Tensor:
        """A new leaf, to differentiate by if it may be."""
        seen = self.d.floats(tuple(shape), low, high, **options)
        if param and self.d.leaves[-1].dtype.name in ("f32", "f64"):
            self.d.leaves[-1].is_param = True
            self.params.append(self.d.leaves[-1])
        return seen

    def fitting(self, x: Tensor) -> Tensor:
        """Something that broadcasts to `x`: a tensor there is, or a new leaf."""
        known = [t for t in self.pool if _broadcasts(t.shape, x.shape)]
        if known and self.d.integer(0, 1):
            found: Tensor = self.d.choice(known)
            return found
        return self.leaf(self.d.broadcastable(x.shape), param=self.d.choice([True, False]))


def _broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    if len(small) > len(large):
        return False
    return all(a in (1, b) for a, b in zip(reversed(small), reversed(large), strict=False))


def _unary(g: RandomGraph, x: Tensor) -> Tensor:
    y: Tensor = g.d.choice([ops.silu, ops.tanh, ops.sigmoid, ops.neg])(x)
    return y


def _arithmetic(g: RandomGraph, x: Tensor) -> Tensor:
    other = g.fitting(x)
    pair = (x, other) if g.d.integer(0, 1) else (other, x)
    y: Tensor = g.d.choice([ops.add, ops.sub, lambda a, b: ops.scale(a * b, 0.5)])(*pair)
    return y


def _quotient(g: RandomGraph, x: Tensor) -> Tensor:
    return x / (g.fitting(x).sigmoid() + 0.5)


def _same_twice(g: RandomGraph, x: Tensor) -> Tensor:
    y: Tensor = g.d.choice([lambda: x + x, lambda: ops.scale(x * x, 0.3), lambda: x - (-x)])()
    return y


def _other_axes(g: RandomGraph, x: Tensor) -> Tensor | None:
    if x.ndim < 2:
        return None
    first = g.d.integer(0, x.ndim - 1)
    return ops.permute(x, (*range(first, x.ndim), *range(first))) if first else x.T


def _part(g: RandomGraph, x: Tensor) -> Tensor | None:
    if 0 in x.shape or not x.ndim:
        return None
    parts = []
    for n in x.shape:
        start = g.d.integer(0, n - 1)
        parts.append((start, g.d.integer(start + 1, n), g.d.choice([1, 2])))
    return ops.slice(x, tuple(parts))


def _reshaped(g: RandomGraph, x: Tensor) -> Tensor:
    last = x.shape[-1] if x.ndim else 1
    shapes = [(x.size // max(last, 1), last), (x.size,), *([(1, *x.shape)] if x.ndim < 4 else [])]
    return ops.reshape(x if x.is_contiguous else ops.cont(x), g.d.choice(shapes))


def _linear(g: RandomGraph, x: Tensor) -> Tensor | None:
    if x.ndim < 2:
        return None
    k = x.shape[-1]
    return ops.mul_mat(g.leaf((g.d.integer(1, 5), k), -1.0, 1.0), x)


def _residual(g: RandomGraph, x: Tensor) -> Tensor | None:
    if x.ndim < 2:
        return None
    k = x.shape[-1]
    inner = ops.rms_norm(x) * g.leaf((k,)) if g.d.integer(0, 1) else x.silu() * x
    return x + ops.mul_mat(g.leaf((k, k), -0.5, 0.5), inner)


def _attention(g: RandomGraph, x: Tensor) -> Tensor | None:
    if x.ndim < 2:
        return None
    scores = ops.scale(ops.mul_mat(x, x), 1 / math.sqrt(max(x.shape[-1], 1)))
    if g.d.integer(0, 2):
        scores = ops.diag_mask_inf(scores, g.d.integer(0, 1))
    return ops.mul_mat(x.T, ops.soft_max(scores))


def _normalised(g: RandomGraph, x: Tensor) -> Tensor | None:
    if not x.ndim:
        return None
    y = ops.rms_norm(x, g.d.choice([1e-5, 0.5]))
    return y * g.leaf(x.shape[-1:]) if g.d.integer(0, 1) else y


def _added_and_normalised(g: RandomGraph, x: Tensor) -> Tensor | None:
    if not x.ndim:
        return None
    total = x + g.fitting(x)
    g.pool.append(total)
    return ops.rms_norm(total) * g.leaf(x.shape[-1:])


def _gated(g: RandomGraph, x: Tensor) -> Tensor:
    other = g.leaf(x.shape)
    return x.silu() * other if g.d.integer(0, 1) else other * x.silu()


def _soft(g: RandomGraph, x: Tensor) -> Tensor | None:
    return ops.soft_max(x, None, g.d.choice([1.0, 0.5])) if x.ndim else None


def _reduced(g: RandomGraph, x: Tensor) -> Tensor | None:
    if not x.ndim:
        return None
    y = g.d.choice([ops.mean, lambda t: ops.scale(ops.sum_rows(t), 0.3)])(x)
    return ops.repeat(y, x.shape) if g.d.integer(0, 1) else y


def _rows(g: RandomGraph, x: Tensor) -> Tensor | None:
    if x.ndim != 2 or 0 in x.shape:
        return None
    return ops.get_rows(x, g.d.integers((g.d.integer(1, 5),), 0, x.shape[0] - 1))


def _rotated(g: RandomGraph, x: Tensor) -> Tensor | None:
    if x.ndim < 3 or x.shape[-1] % 2:
        return None
    return ops.rope(x, g.d.integers((x.shape[-3],), 0, 9), x.shape[-1])


def _copied_into(g: RandomGraph, x: Tensor) -> Tensor:
    """Through memory that was read before: who reads it first must find what was there."""
    memory = g.leaf(x.shape, param=False)
    before = ops.add(memory, x)
    after = ops.cpy(x, memory)
    return before + after if g.d.integer(0, 1) else after * before.sigmoid()


def _placed(g: RandomGraph, x: Tensor) -> Tensor | None:
    if not x.is_contiguous or not x.size:
        return None
    n = g.d.integer(1, x.size)
    start = g.d.integer(0, x.size - n)
    new = g.leaf((n,), dtypes=(x.dtype.name,))
    size = x.dtype.itemsize
    y: Tensor = g.d.choice([ops.set, ops.acc])(x, new, (size,), start * size)
    return y


_MOVES: tuple[Callable[[RandomGraph, Tensor], Tensor | None], ...] = (
    _unary,
    _arithmetic,
    _quotient,
    _same_twice,
    _other_axes,
    _part,
    _reshaped,
    _linear,
    _residual,
    _attention,
    _normalised,
    _added_and_normalised,
    _gated,
    _soft,
    _reduced,
    _rows,
    _rotated,
    _copied_into,
    _placed,
)


def draw_graph(d: Sampler) -> RandomGraph:
    """Up to a dozen operations from one parameter, and a loss of some of their results."""
    g = RandomGraph(d)
    shape = d.choice([(3, 4), (2, 3, 4), (5,), (2, 3, 2, 4), (17, 6)])
    g.pool.append(g.leaf(shape, dtypes=("f32",)))
    for _ in range(d.integer(1, 12)):
        made = d.choice(_MOVES)(g, g.pick())
        if made is not None and made.size <= 2000:
            g.pool.append(made)
    ends = [g.pool[-1], *(g.pick() for _ in range(d.integer(0, 2)))]
    g.loss = _loss(g, ends[0])
    for end in ends[1:]:
        g.loss = g.loss + _loss(g, end)
    return g


def _loss(g: RandomGraph, x: Tensor) -> Tensor:
    if x.ndim > 1 and x.size and g.d.integer(0, 2) == 2:
        return ops.cross_entropy_loss(x, g.d.integers(x.shape[:-1], 0, x.shape[-1] - 1))
    return ops.sum(x * g.leaf(x.shape, param=False))
