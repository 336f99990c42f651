"""The sigmoid-weighted unit, its gradient, and its product with a gate in one pass."""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.kernels import gates, math
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Result, op
from yupana.graphlib.ops._rules import alike, float_like, lower_map
from yupana.graphlib.ops._samples import refuses_integers, refuses_unlike, two_alike, within
from yupana.graphlib.ops.activation import sigmoid, sigmoid_reference
from yupana.graphlib.ops.arithmetic import add, mul, scale, sub
from yupana.graphlib.ops.unary import sqr
from yupana.graphlib.tensor import Tensor

real: Any = float  # in formulas the type computed in, which a kernel binds

_QUICK = 1.702


def gated_reference(x: Array, t: Array) -> Array:
    """x / (1 + e^-t) in NumPy, with its limit 0 where both are -inf."""
    return np.asarray(np.where(x == -np.inf, 0.0, x * sigmoid_reference(t)))


def _silu_grad(y: Tensor, g: Tensor) -> Tensor:
    return silu_back(y.srcs[0], g)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: gates.silu(x), 1, ns=0.4)),
    vjp=(_silu_grad,),
    reference=lambda x: gated_reference(x, x),
    samples=within((-3.0, 3.0), (-20.0, 20.0)),
    error_samples=refuses_integers("silu"),
    inplace=(0,),
    cost=20.0,
    family="unary",
)
def silu(x: Tensor) -> Result:
    """Sigmoid-weighted x: y = x / (1 + e^-x); 0 at -inf.

    Gradient: with respect to `x` (`silu_back`).
    Source: Elfwing et al. 2017; ggml_silu (without its rounding to f16).

    >>> silu(tensor([0.0, 2.0])).numpy().round(3)
    array([0.   , 1.762], dtype=float32)
    """
    return float_like("silu", x)


# The slope is 0 or 1 far from 0, where infinity times 0 would be NaN.


def _silu_slope(x, g, p0, p1, p2, p3):
    x = gates.cut_off(x, real(-750))
    s = math.sigmoid(x)
    return g * s * (real(1) + x * (real(1) - s))


def _silu_back_reference(x: Array, g: Array) -> Array:
    x = np.clip(x, -750, 750)
    s = sigmoid_reference(x)
    return np.asarray(g * s * (1 + x * (1 - s)))


def _silu_curvature(x: Tensor) -> Tensor:
    """Second derivative of silu: s' (2 + x (1 - 2s)) with s' = s - s²."""
    s = sigmoid(x)
    slope = sub(s, sqr(s))
    return add(scale(slope, 2.0), mul(slope, sub(x, scale(mul(x, s), 2.0))))


@op(
    lower=lower_map(Map(_silu_slope, 2, ns=0.5)),
    vjp=(
        lambda y, g: mul(mul(g, y.srcs[1]), _silu_curvature(y.srcs[0])),
        _silu_grad,
    ),
    reference=_silu_back_reference,
    samples=two_alike,
    error_samples=refuses_unlike("silu_back"),
    inplace=(0, 1),
    cost=25.0,
    family="unary",
)
def silu_back(x: Tensor, g: Tensor) -> Result:
    """Gradient of `silu` at `x` times `g`: g · s · (1 + x (1 - s)) with s = sigmoid(x).

    Args:
        x, g: float, of the same shape.
    Gradient: with respect to both. Source: ggml_silu_back.

    >>> silu_back(tensor([0.0, 2.0]), tensor([1.0, 1.0])).numpy().round(3)
    array([0.5  , 1.091], dtype=float32)
    """
    return alike("silu_back", x, g)


_silu_mul = Map(lambda a, b, p0, p1, p2, p3: gates.silu(a) * b, 2, ns=0.5)


def silu_mul_steps(dst: View, a: View, b: View) -> list[Step]:
    """`mul(silu(a), b)` in one pass."""
    return _silu_mul.steps(dst, [a, b])


def _silu_mul_slope(a, b, g, p0, p1, p2, p3):
    return _silu_slope(a, g * b, p0, p1, p2, p3)


_silu_mul_back = Map(_silu_mul_slope, 3, ns=0.6)


def silu_mul_back_steps(dst: View, a: View, b: View, g: View) -> list[Step]:
    """`silu_back(a, mul(g, b))` in one pass: what reaches `a` through `mul(silu(a), b)`."""
    return _silu_mul_back.steps(dst, [a, b, g])


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: gates.gelu_quick(x), 1, ns=0.5)),
    # It is silu(1.702 x) / 1.702.
    vjp=(lambda y, g: silu_back(scale(y.srcs[0], _QUICK), g),),
    reference=lambda x: gated_reference(x, _QUICK * x),
    samples=within((-3.0, 3.0), (-12.0, 12.0)),
    error_samples=refuses_integers("gelu_quick"),
    inplace=(0,),
    cost=22.0,
    family="unary",
)
def gelu_quick(x: Tensor) -> Result:
    """A quick likeness of `gelu_erf`: y = x / (1 + e^(-1.702 x)); 0 at -inf.

    Gradient: with respect to `x` (ggml has none).
    Source: Hendrycks & Gimpel 2016, section 2; ggml_gelu_quick (without its rounding to f16).

    >>> gelu_quick(tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.846], dtype=float32)
    """
    return float_like("gelu_quick", x)
