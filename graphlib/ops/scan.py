"""Running sums."""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels.rowwise import Rows
from yupana.graphlib.op import Array, ErrorSample, Result, call, op
from yupana.graphlib.ops._rules import float_like, lower_rows, need_axes
from yupana.graphlib.tensor import Tensor

real: Any = float  # in row functions the type computed in, which a kernel binds


def _cumsum(y, x, i, p):
    total = 0.0
    n = y.size
    for j in range(n):
        k = n - 1 - j if p[0] > 0 else j
        total += x[k]
        y[k] = real(total)


def _cumsum_reference(x: Array, reverse: bool) -> Array:
    return np.cumsum(x[..., ::-1], -1)[..., ::-1] if reverse else np.cumsum(x, -1)


@op(
    lower=lower_rows(Rows(_cumsum, 1, ns=1.2), ("reverse",)),
    vjp=(lambda y, g: cumsum(g, not y.params["reverse"]),),
    reference=_cumsum_reference,
    samples=lambda d: call(d.floats(d.shape()), d.choice([False, True])),
    error_samples=lambda: [
        ErrorSample(lambda: cumsum(tensor([1, 2])), DtypeError, "i32"),
        ErrorSample(lambda: cumsum(tensor(1.0)), ShapeError, "at least 1 axes"),
    ],
    inplace=(0,),
    family="reduction",
)
def cumsum(x: Tensor, reverse: bool = False) -> Result:
    """Running sum along each row, added in float64: y[..., j] = x[..., 0] + … + x[..., j].

    Args:
        x: (…, D) float.
        reverse: sum from the end: y[..., j] = x[..., j] + … + x[..., D - 1].
    Raises:
        ShapeError: `x` has no axes.
    Gradient: with respect to `x` (ggml has none). Source: ggml_cumsum.

    >>> cumsum(tensor([1.0, 2.0, 3.0])).numpy()
    array([1., 3., 6.], dtype=float32)
    """
    need_axes("cumsum", x, 1)
    return float_like("cumsum", x, reverse=bool(reverse))
