"""Activation functions; silu and gelu, which training spends its time on, have their own files."""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.kernels import math
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import Array, Call, Draw, Result, call, op
from yupana.graphlib.ops._rules import float_like, lower_map, unary_samples
from yupana.graphlib.ops._samples import refuses_integers, within
from yupana.graphlib.ops.arithmetic import add, mul, scale, sub
from yupana.graphlib.ops.clip import clamp, clamp_back, scale_bias
from yupana.graphlib.ops.unary import exp, sqr, step
from yupana.graphlib.tensor import Tensor

real: Any = float  # in formulas the type computed in, which a kernel binds

_OFF_ZERO = within((-3.0, -0.25), (0.25, 3.0))  # at 0 there is no derivative
_WIDE = within((-3.0, 3.0), (-20.0, 20.0))


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: real(0) if x < real(0) else x, 1)),
    vjp=(lambda y, g: mul(g, step(y.srcs[0])),),
    reference=lambda x: np.maximum(x, 0.0),
    samples=_OFF_ZERO,
    error_samples=refuses_integers("relu"),
    inplace=(0,),
    family="unary",
)
def relu(x: Tensor) -> Result:
    """max(x, 0).

    Gradient: with respect to `x`; 0 at 0. Source: ggml_relu.

    >>> relu(tensor([-1.0, 2.0])).numpy()
    array([0., 2.], dtype=float32)
    """
    return float_like("relu", x)


def _leaky_grad(y: Tensor, g: Tensor) -> Tensor:
    slope = y.params["slope"]
    return mul(g, scale_bias(step(y.srcs[0]), 1.0 - slope, slope))


def _leaky_sample(d: Draw) -> Call:
    return call(*_OFF_ZERO(d).args, d.choice([0.1, 0.0, -0.5]))


@op(
    lower=lower_map(Map(lambda x, s, p1, p2, p3: x if x > real(0) else s * x, 1), ("slope",)),
    vjp=(_leaky_grad,),
    reference=lambda x, slope: np.where(x > 0, x, slope * x),
    samples=_leaky_sample,
    error_samples=refuses_integers("leaky_relu"),
    inplace=(0,),
    family="unary",
)
def leaky_relu(x: Tensor, slope: float = 0.1) -> Result:
    """x where x > 0, else slope · x.

    Gradient: with respect to `x`; the slope at 0. Source: ggml_leaky_relu.

    >>> leaky_relu(tensor([-1.0, 2.0])).numpy()
    array([-0.1,  2. ], dtype=float32)
    """
    return float_like("leaky_relu", x, slope=float(slope))


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: x if x > real(0) else math.expm1(x), 1, ns=0.4)),
    vjp=(lambda y, g: mul(g, exp(clamp(y.srcs[0], -np.inf, 0.0))),),
    reference=lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    samples=_OFF_ZERO,
    error_samples=refuses_integers("elu"),
    inplace=(0,),
    cost=16.0,
    family="unary",
)
def elu(x: Tensor) -> Result:
    """x where x > 0, else e^x - 1.

    Gradient: with respect to `x` (ggml has none). Source: Clevert et al. 2015; ggml_elu.

    >>> elu(tensor([-1.0, 2.0])).numpy().round(3)
    array([-0.632,  2.   ], dtype=float32)
    """
    return float_like("elu", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: math.softplus(x), 1, ns=0.5)),
    vjp=(lambda y, g: mul(g, sigmoid(y.srcs[0])),),
    reference=lambda x: np.logaddexp(x, np.zeros_like(x)),
    samples=_WIDE,
    error_samples=refuses_integers("softplus"),
    inplace=(0,),
    cost=35.0,
    family="unary",
)
def softplus(x: Tensor) -> Result:
    """log(1 + e^x), without overflow and with all digits of small results.

    Gradient: with respect to `x`. Source: ggml_softplus (which gives x above 20).

    >>> softplus(tensor([0.0, 100.0])).numpy().round(3)
    array([  0.693, 100.   ], dtype=float32)
    """
    return float_like("softplus", x)


def sigmoid_reference(x: Array) -> Array:
    """1 / (1 + e^-x) in NumPy, without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1.0) / (1.0 + e))


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: math.sigmoid(x), 1, ns=0.4)),
    vjp=(lambda y, g: mul(g, sub(y, sqr(y))),),
    reference=sigmoid_reference,
    samples=_WIDE,
    error_samples=refuses_integers("sigmoid"),
    inplace=(0,),
    cost=20.0,
    family="unary",
)
def sigmoid(x: Tensor) -> Result:
    """Logistic function: y = 1 / (1 + e^-x).

    Gradient: with respect to `x`. Source: ggml_sigmoid.

    >>> sigmoid(tensor([0.0, 2.0])).numpy().round(3)
    array([0.5  , 0.881], dtype=float32)
    """
    return float_like("sigmoid", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: math.tanh(x), 1, ns=0.5)),
    vjp=(lambda y, g: sub(g, mul(g, sqr(y))),),
    reference=np.tanh,
    samples=unary_samples(),
    error_samples=refuses_integers("tanh"),
    inplace=(0,),
    cost=25.0,
    family="unary",
)
def tanh(x: Tensor) -> Result:
    """Hyperbolic tangent.

    Gradient: with respect to `x` (ggml has none). Source: ggml_tanh.

    >>> tanh(tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.762], dtype=float32)
    """
    return float_like("tanh", x)


_BETWEEN_BENDS = within((-2.75, 2.75), (-8.0, -3.25), (3.25, 8.0))


def _hard_sigmoid(x, p0, p1, p2, p3):
    y = (x + real(3)) / real(6)
    return real(0) if y < real(0) else (real(1) if y > real(1) else y)


@op(
    lower=lower_map(Map(_hard_sigmoid, 1)),
    vjp=(lambda y, g: scale(clamp_back(y.srcs[0], g, -3.0, 3.0), 1 / 6),),
    reference=lambda x: np.clip((x + 3.0) / 6.0, 0.0, 1.0),
    samples=_BETWEEN_BENDS,
    error_samples=refuses_integers("hardsigmoid"),
    inplace=(0,),
    cost=3.0,
    family="unary",
)
def hardsigmoid(x: Tensor) -> Result:
    """(x + 3) / 6, limited to [0, 1].

    Gradient: with respect to `x` (ggml has none). Source: ggml_hardsigmoid.

    >>> hardsigmoid(tensor([-4.0, 0.0, 4.0])).numpy()
    array([0. , 0.5, 1. ], dtype=float32)
    """
    return float_like("hardsigmoid", x)


def _hard_swish(x, p0, p1, p2, p3):
    y = x * ((x + real(3)) / real(6))
    return real(0) if x <= real(-3) else (x if x >= real(3) else y)


def _hard_swish_reference(x: Array) -> Array:
    return np.asarray(np.where(x <= -3, 0.0, np.where(x >= 3, x, x * ((x + 3) / 6))))


def _hard_swish_grad(y: Tensor, g: Tensor) -> Tensor:
    x = y.srcs[0]
    return add(mul(g, hardsigmoid(x)), scale(clamp_back(x, mul(g, x), -3.0, 3.0), 1 / 6))


@op(
    lower=lower_map(Map(_hard_swish, 1)),
    vjp=(_hard_swish_grad,),
    reference=_hard_swish_reference,
    samples=_BETWEEN_BENDS,
    error_samples=refuses_integers("hardswish"),
    inplace=(0,),
    cost=4.0,
    family="unary",
)
def hardswish(x: Tensor) -> Result:
    """x times `hardsigmoid(x)`; 0 at -inf.

    Gradient: with respect to `x` (ggml has none). Source: Howard et al. 2019; ggml_hardswish.

    >>> hardswish(tensor([-4.0, 1.0, 4.0])).numpy().round(3)
    array([0.   , 0.667, 4.   ], dtype=float32)
    """
    return float_like("hardswish", x)
