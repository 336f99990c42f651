"""Gaussian error linear units: the tanh form, which ggml and GPT-2 mean by gelu, and the exact."""

import math as library
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.kernels import gates, math
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import Array, Result, op
from yupana.graphlib.ops._rules import alike, float_like, lower_map
from yupana.graphlib.ops._samples import refuses_integers, refuses_unlike, two_alike, within
from yupana.graphlib.ops.activation import sigmoid, sigmoid_reference
from yupana.graphlib.ops.arithmetic import add, mul, scale, sub
from yupana.graphlib.ops.clip import scale_bias
from yupana.graphlib.ops.gates import gated_reference
from yupana.graphlib.ops.unary import exp, sqr
from yupana.graphlib.tensor import Tensor

real: Any = float  # in formulas the type computed in, which a kernel binds

# gelu(x) = x sigmoid(t), t = A x + B x³
_A = 2 * library.sqrt(2 / library.pi)
_B = 0.044715 * _A
_INVERSE_ROOT = 1 / library.sqrt(2 * library.pi)
# From here on the slopes are 0 or 1 in float64, too, and infinity times 0 would be NaN.
_FAR = 40.0
_SAMPLES = within((-3.0, 3.0), (-12.0, 12.0))


def _gelu_grad(y: Tensor, g: Tensor) -> Tensor:
    return gelu_back(y.srcs[0], g)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: gates.gelu(x), 1, ns=0.5)),
    vjp=(_gelu_grad,),
    reference=lambda x: gated_reference(x, _A * x + _B * x**3),
    samples=_SAMPLES,
    error_samples=refuses_integers("gelu"),
    inplace=(0,),
    cost=25.0,
    family="unary",
)
def gelu(x: Tensor) -> Result:
    """Gaussian error linear unit in its tanh form; 0 at -inf.

        y = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) / 2

    Gradient: with respect to `x` (`gelu_back`; ggml has none).
    Source: Hendrycks & Gimpel 2016, section 2; ggml_gelu (without its rounding to f16).

    >>> gelu(tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.841], dtype=float32)
    """
    return float_like("gelu", x)


def _gelu_slope(x, g, p0, p1, p2, p3):
    x = gates.cut_off(x, real(-_FAR))
    square = x * x
    s = math.sigmoid(x * (real(_A) + real(_B) * square))
    return g * s * (real(1) + x * (real(1) - s) * (real(_A) + real(3 * _B) * square))


def _gelu_back_reference(x: Array, g: Array) -> Array:
    x = np.clip(x, -_FAR, _FAR)
    s = sigmoid_reference(_A * x + _B * x**3)
    return np.asarray(g * s * (1 + x * (1 - s) * (_A + 3 * _B * x**2)))


def _gelu_curvature(x: Tensor) -> Tensor:
    """Second derivative of gelu: s' (2 t' + x (t'' + t'² (1 - 2s))) with s' = s - s²."""
    square = sqr(x)
    s = sigmoid(mul(x, scale_bias(square, _B, _A)))
    first, second = scale_bias(square, 3 * _B, _A), scale(x, 6 * _B)
    bent = add(second, mul(sqr(first), scale_bias(s, -2.0, 1.0)))
    return mul(sub(s, sqr(s)), add(scale(first, 2.0), mul(x, bent)))


@op(
    lower=lower_map(Map(_gelu_slope, 2, ns=0.5)),
    vjp=(
        lambda y, g: mul(mul(g, y.srcs[1]), _gelu_curvature(y.srcs[0])),
        _gelu_grad,
    ),
    reference=_gelu_back_reference,
    samples=two_alike,
    error_samples=refuses_unlike("gelu_back"),
    inplace=(0, 1),
    cost=32.0,
    family="unary",
)
def gelu_back(x: Tensor, g: Tensor) -> Result:
    """Gradient of `gelu` at `x` times `g`: g · s · (1 + x (1 - s) t'), s = sigmoid(t).

    t = 2 sqrt(2/pi) (x + 0.044715 x³) is twice the argument of the tanh, t' its derivative.

    Args:
        x, g: float, of the same shape.
    Gradient: with respect to both. Source: derived from `gelu`; ggml has none.

    >>> gelu_back(tensor([0.0, 1.0]), tensor([1.0, 1.0])).numpy().round(3)
    array([0.5  , 1.083], dtype=float32)
    """
    return alike("gelu_back", x, g)


def _normal_cdf(x: Array) -> Array:
    each = np.frompyfunc(lambda v: 0.5 * library.erfc(-v / library.sqrt(2)), 1, 1)
    return np.asarray(each(x), x.dtype)


def _gelu_erf_grad(y: Tensor, g: Tensor) -> Tensor:
    return gelu_erf_back(y.srcs[0], g)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: gates.gelu_erf(x), 1, ns=0.6)),
    vjp=(_gelu_erf_grad,),
    reference=lambda x: np.where(x == -np.inf, 0.0, x * _normal_cdf(x)),
    samples=_SAMPLES,
    error_samples=refuses_integers("gelu_erf"),
    inplace=(0,),
    cost=50.0,
    family="unary",
)
def gelu_erf(x: Tensor) -> Result:
    """Gaussian error linear unit: x times the normal distribution function; 0 at -inf.

        y = x (1 + erf(x / sqrt(2))) / 2

    Gradient: with respect to `x` (`gelu_erf_back`; ggml has none).
    Source: Hendrycks & Gimpel 2016, eq. 1; ggml_gelu_erf.

    >>> gelu_erf(tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.841], dtype=float32)
    """
    return float_like("gelu_erf", x)


def _gelu_erf_slope(x, g, p0, p1, p2, p3):
    x = gates.cut_off(x, real(-_FAR))
    density = real(_INVERSE_ROOT) * math.exp(real(-0.5) * (x * x))
    return g * (gates.normal_cdf(x) + x * density)


def _gelu_erf_back_reference(x: Array, g: Array) -> Array:
    x = np.clip(x, -_FAR, _FAR)
    return np.asarray(g * (_normal_cdf(x) + x * _INVERSE_ROOT * np.exp(-0.5 * x**2)))


def _gelu_erf_curvature(x: Tensor) -> Tensor:
    """Second derivative of gelu_erf: (2 - x²) times the normal density."""
    square = sqr(x)
    density = scale(exp(scale(square, -0.5)), _INVERSE_ROOT)
    return mul(density, scale_bias(square, -1.0, 2.0))


@op(
    lower=lower_map(Map(_gelu_erf_slope, 2, ns=0.8)),
    vjp=(
        lambda y, g: mul(mul(g, y.srcs[1]), _gelu_erf_curvature(y.srcs[0])),
        _gelu_erf_grad,
    ),
    reference=_gelu_erf_back_reference,
    samples=two_alike,
    error_samples=refuses_unlike("gelu_erf_back"),
    inplace=(0, 1),
    cost=70.0,
    family="unary",
)
def gelu_erf_back(x: Tensor, g: Tensor) -> Result:
    """Gradient of `gelu_erf` at `x` times `g`: g times (distribution + x · density) at x.

    Args:
        x, g: float, of the same shape.
    Gradient: with respect to both. Source: derived from `gelu_erf`; ggml has none.

    >>> gelu_erf_back(tensor([0.0, 1.0]), tensor([1.0, 1.0])).numpy().round(3)
    array([0.5  , 1.083], dtype=float32)
    """
    return alike("gelu_erf_back", x, g)
