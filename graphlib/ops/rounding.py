"""Rounding to whole numbers. The gradient is 0, as in torch: the functions are flat in steps."""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import Array, Result, op
from yupana.graphlib.ops._rules import float_like, lower_map
from yupana.graphlib.ops._samples import refuses_integers, within
from yupana.graphlib.ops.unary import zero_grad
from yupana.graphlib.tensor import Tensor

real: Any = float  # in formulas the type computed in, which a kernel binds

# Within a step, where the gradient can be checked; tests/test_math.py rounds every kind of float.
_BETWEEN_WHOLE = within((0.05, 0.95), (-1.95, -1.05), (6.05, 6.95))
_BETWEEN_HALVES = within((-0.45, 0.45), (0.55, 1.45), (-2.45, -1.55))


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: np.floor(x), 1)),
    vjp=(zero_grad,),
    reference=np.floor,
    samples=_BETWEEN_WHOLE,
    error_samples=refuses_integers("floor"),
    inplace=(0,),
    family="unary",
)
def floor(x: Tensor) -> Result:
    """The largest whole number that is not above x.

    Gradient: 0. Source: ggml_floor.

    >>> floor(tensor([1.5, -1.5])).numpy()
    array([ 1., -2.], dtype=float32)
    """
    return float_like("floor", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: np.ceil(x), 1)),
    vjp=(zero_grad,),
    reference=np.ceil,
    samples=_BETWEEN_WHOLE,
    error_samples=refuses_integers("ceil"),
    inplace=(0,),
    family="unary",
)
def ceil(x: Tensor) -> Result:
    """The smallest whole number that is not below x.

    Gradient: 0. Source: ggml_ceil.

    >>> ceil(tensor([1.5, -1.5])).numpy()
    array([ 2., -1.], dtype=float32)
    """
    return float_like("ceil", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: np.trunc(x), 1)),
    vjp=(zero_grad,),
    reference=np.trunc,
    samples=_BETWEEN_WHOLE,
    error_samples=refuses_integers("trunc"),
    inplace=(0,),
    family="unary",
)
def trunc(x: Tensor) -> Result:
    """x without the digits behind the point.

    Gradient: 0. Source: ggml_trunc.

    >>> trunc(tensor([1.5, -1.5])).numpy()
    array([ 1., -1.], dtype=float32)
    """
    return float_like("trunc", x)


def _round(x, p0, p1, p2, p3):
    whole = np.trunc(x)
    rest = x - whole  # exact
    up = real(1) if rest >= real(0.5) else real(0)
    return whole - real(1) if rest <= real(-0.5) else whole + up


def _round_reference(x: Array) -> Array:
    whole = np.trunc(x)
    return np.asarray(np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole))


@op(
    lower=lower_map(Map(_round, 1)),
    vjp=(zero_grad,),
    reference=_round_reference,
    samples=_BETWEEN_HALVES,
    error_samples=refuses_integers("round"),
    inplace=(0,),
    family="unary",
)
def round(x: Tensor) -> Result:
    """The nearest whole number; halves go away from 0, as in C, not to the even neighbour.

    Gradient: 0. Source: ggml_round.

    >>> round(tensor([0.5, -1.5, 2.4])).numpy()
    array([ 1., -2.,  2.], dtype=float32)
    """
    return float_like("round", x)
