"""Elementary functions of one element."""

import math as library
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.kernels import math, trigonometry
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import Array, Result, op
from yupana.graphlib.ops._rules import float_like, lower_map, unary_samples
from yupana.graphlib.ops._samples import refuses_integers, within
from yupana.graphlib.ops.arithmetic import div, mul, neg, scale
from yupana.graphlib.ops.clip import fill
from yupana.graphlib.tensor import Tensor

_log = Map(lambda x, p0, p1, p2, p3: math.log(x), 1, 0.4, usual=(math.log_rarity, math.usual_log))
_sin = Map(
    lambda x, p0, p1, p2, p3: trigonometry.sin(x),
    1,
    0.4,
    usual=(trigonometry.rarity, trigonometry.near_sin),
)
_cos = Map(
    lambda x, p0, p1, p2, p3: trigonometry.cos(x),
    1,
    0.4,
    usual=(trigonometry.rarity, trigonometry.near_cos),
)
real: Any = float  # in formulas the type computed in, which a kernel binds


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: x * x, 1)),
    vjp=(lambda y, g: scale(mul(g, y.srcs[0]), 2.0),),
    reference=np.square,
    samples=unary_samples(),
    error_samples=refuses_integers("sqr"),
    inplace=(0,),
    family="unary",
)
def sqr(x: Tensor) -> Result:
    """Square: y = x².

    Gradient: with respect to `x`. Source: ggml_sqr.

    >>> sqr(tensor([1.0, -3.0])).numpy()
    array([1., 9.], dtype=float32)
    """
    return float_like("sqr", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: np.sqrt(x), 1, ns=0.4)),
    vjp=(lambda y, g: scale(div(g, y), 0.5),),
    reference=np.sqrt,
    samples=unary_samples(0.1, 3.0),
    error_samples=refuses_integers("sqrt"),
    inplace=(0,),
    family="unary",
)
def sqrt(x: Tensor) -> Result:
    """Square root; NaN below 0.

    Gradient: with respect to `x`, infinite at 0. Source: ggml_sqrt.

    >>> sqrt(tensor([4.0, 9.0])).numpy()
    array([2., 3.], dtype=float32)
    """
    return float_like("sqrt", x)


@op(
    lower=lower_map(_log),
    vjp=(lambda y, g: div(g, y.srcs[0]),),
    reference=np.log,
    samples=unary_samples(0.1, 3.0),
    error_samples=refuses_integers("log"),
    inplace=(0,),
    cost=15.0,
    family="unary",
)
def log(x: Tensor) -> Result:
    """Natural logarithm; -inf at 0, NaN below.

    Gradient: with respect to `x`. Source: ggml_log.

    >>> log(tensor([1.0, 2.7182817])).numpy()
    array([0., 1.], dtype=float32)
    """
    return float_like("log", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: math.exp(x), 1, ns=0.3)),
    vjp=(lambda y, g: mul(g, y),),
    reference=np.exp,
    samples=unary_samples(),
    error_samples=refuses_integers("exp"),
    inplace=(0,),
    cost=15.0,
    family="unary",
)
def exp(x: Tensor) -> Result:
    """e to the power x.

    Gradient: with respect to `x`. Source: ggml_exp.

    >>> exp(tensor([0.0, 1.0])).numpy().round(3)
    array([1.   , 2.718], dtype=float32)
    """
    return float_like("exp", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: math.expm1(x), 1, ns=0.35)),
    vjp=(lambda y, g: mul(g, exp(y.srcs[0])),),
    reference=np.expm1,
    samples=unary_samples(),
    error_samples=refuses_integers("expm1"),
    inplace=(0,),
    cost=16.0,
    family="unary",
)
def expm1(x: Tensor) -> Result:
    """e to the power x, less 1, without the digits that the difference loses near 0.

    Gradient: with respect to `x`. Source: ggml_expm1 (which does lose them).

    >>> expm1(tensor([0.0, 1e-8])).numpy()
    array([0.e+00, 1.e-08], dtype=float32)
    """
    return float_like("expm1", x)


@op(
    lower=lower_map(_sin),
    vjp=(lambda y, g: mul(g, cos(y.srcs[0])),),
    reference=np.sin,
    samples=within((-3.0, 3.0), (-1000.0, 1000.0)),
    error_samples=refuses_integers("sin"),
    inplace=(0,),
    cost=30.0,
    family="unary",
)
def sin(x: Tensor) -> Result:
    """Sine of x radians, exact for large x, too; NaN at infinity.

    Gradient: with respect to `x`. Source: ggml_sin.

    >>> sin(tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.841], dtype=float32)
    """
    return float_like("sin", x)


@op(
    lower=lower_map(_cos),
    vjp=(lambda y, g: neg(mul(g, sin(y.srcs[0]))),),
    reference=np.cos,
    samples=within((-3.0, 3.0), (-1000.0, 1000.0)),
    error_samples=refuses_integers("cos"),
    inplace=(0,),
    cost=30.0,
    family="unary",
)
def cos(x: Tensor) -> Result:
    """Cosine of x radians, exact for large x, too; NaN at infinity.

    Gradient: with respect to `x`. Source: ggml_cos.

    >>> cos(tensor([0.0, 1.0])).numpy().round(3)
    array([1.  , 0.54], dtype=float32)
    """
    return float_like("cos", x)


def _erf(x: Array) -> Array:
    return np.asarray(np.frompyfunc(library.erf, 1, 1)(x), x.dtype)


def _erf_grad(y: Tensor, g: Tensor) -> Tensor:
    return scale(mul(g, exp(neg(sqr(y.srcs[0])))), 2 / library.sqrt(library.pi))


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: math.erf(x), 1, ns=0.5)),
    vjp=(_erf_grad,),
    reference=_erf,
    samples=unary_samples(),
    error_samples=refuses_integers("erf"),
    inplace=(0,),
    cost=40.0,
    family="unary",
)
def erf(x: Tensor) -> Result:
    """Error function: y = 2 / sqrt(pi) times the integral of e^(-t²) from 0 to x.

    Gradient: with respect to `x`. Source: the C function erff, as in ggml_gelu_erf.

    >>> erf(tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.843], dtype=float32)
    """
    return float_like("erf", x)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: np.abs(x), 1)),
    vjp=(lambda y, g: mul(g, sgn(y.srcs[0])),),
    reference=np.abs,
    samples=within((-3.0, -0.25), (0.25, 3.0)),
    error_samples=refuses_integers("abs"),
    inplace=(0,),
    family="unary",
)
def abs(x: Tensor) -> Result:
    """Absolute value.

    Gradient: with respect to `x`; 0 at 0. Source: ggml_abs.

    >>> abs(tensor([-2.0, 3.0])).numpy()
    array([2., 3.], dtype=float32)
    """
    return float_like("abs", x)


def _sgn(x, p0, p1, p2, p3):
    return real(1) if x > real(0) else (real(-1) if x < real(0) else x)


def zero_grad(y: Tensor, g: Tensor) -> Tensor:
    """The gradient of functions that are constant in steps: 0, as in ggml and torch."""
    return fill(y.srcs[0], 0.0)


@op(
    lower=lower_map(Map(_sgn, 1)),
    vjp=(zero_grad,),
    reference=np.sign,
    samples=within((-3.0, -0.25), (0.25, 3.0)),
    error_samples=refuses_integers("sgn"),
    inplace=(0,),
    family="unary",
)
def sgn(x: Tensor) -> Result:
    """Sign: 1, -1, or 0 at 0; NaN stays.

    Gradient: 0, which it is wherever it exists. Source: ggml_sgn.

    >>> sgn(tensor([-2.0, 0.0, 3.0])).numpy()
    array([-1.,  0.,  1.], dtype=float32)
    """
    return float_like("sgn", x)


def _step(x, p0, p1, p2, p3):
    is_nan = not (x > real(0) or x <= real(0))
    return x if is_nan else (real(1) if x > real(0) else real(0))


@op(
    lower=lower_map(Map(_step, 1)),
    vjp=(zero_grad,),
    reference=lambda x: np.where(np.isnan(x), x, x > 0),
    samples=within((-3.0, -0.25), (0.25, 3.0)),
    error_samples=refuses_integers("step"),
    inplace=(0,),
    family="unary",
)
def step(x: Tensor) -> Result:
    """1 where x > 0, else 0; NaN stays.

    Gradient: 0, which it is wherever it exists. Source: ggml_step.

    >>> step(tensor([-1.0, 0.0, 2.0])).numpy()
    array([0., 0., 1.], dtype=float32)
    """
    return float_like("step", x)
