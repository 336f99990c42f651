"""The training loss of language models, from logits that need not exist."""

from __future__ import annotations

from yupana.graphlib.ops import cross_entropy_loss, linear_cross_entropy
from yupana.graphlib.tensor import Tensor

ROOM = 1 << 25  # bytes of logits that may exist at a time
_LEAST_ROWS = 64  # pieces of fewer would read the output matrix too often


def vocabulary_loss(
    logits: Tensor, targets: Tensor, mask: Tensor | None = None, room: int = ROOM
) -> Tensor:
    """Record the mean cross entropy of recorded logits, in nats.

    Logits that take more than `room` bytes are computed and used up in pieces, if they are a sum of
    one or two products, as those of an output matrix with a low-rank part beside it; what was
    recorded of them then never runs. Of a matrix that is trained twice as many exist: its gradient
    is added up piece by piece, which takes time.

    Args:
        logits: (N, V).
        targets: (N,) i32; a negative one does not count.
        mask: (N,) float, the weight of each target; None: all 1. With one, all logits exist.
    Returns:
        () f32.

    >>> import numpy as np
    >>> from yupana.graphlib.context import Context
    >>> ctx = Context()
    >>> x, w = ctx.tensor(np.ones((128, 3))), ctx.tensor(np.zeros((5, 3)))
    >>> loss = vocabulary_loss(x @ w.T, ctx.tensor([1] * 128), room=1)
    >>> loss.op.name, loss.params["chunk"], round(loss.item(), 4)
    ('linear_cross_entropy', 64, 1.6094)
    """
    terms = None if mask is not None else _terms(logits)
    if terms is not None and len(terms) <= 2:
        (x, w), *more = terms
        room *= 2 if w.is_param else 1
        rows = max(room // (4 * w.shape[0]) // _LEAST_ROWS, 1) * _LEAST_ROWS
        if logits.nbytes > room and rows < logits.shape[0]:
            x2, w2 = more[0] if more else (None, None)
            return linear_cross_entropy(x, w, targets, x2, w2, rows)
    return cross_entropy_loss(logits, targets, mask)


def _terms(y: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """The products (x, w) of which `y` is the sum; None if it is something else."""
    if y.op is not None and y.op.name == "mul_mat":
        w, x = y.srcs
        return [(x, w)] if w.ndim == x.ndim == 2 and x.dtype.is_float else None
    if y.op is not None and y.op.name == "add":
        parts = [_terms(src) for src in y.srcs]
        if all(src.shape == y.shape for src in y.srcs) and None not in parts:
            return [term for part in parts for term in part or ()]
    return None
