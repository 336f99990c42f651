"""Limits, and sums with a single number."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import REGISTRY, Array, Call, Draw, ErrorSample, Result, call, op
from yupana.graphlib.ops._rules import alike, float_like, lower_map, need_float
from yupana.graphlib.ops.arithmetic import add, scale
from yupana.graphlib.ops.arrange import concat
from yupana.graphlib.ops.reduction import repeat
from yupana.graphlib.tensor import Tensor

real: Any = float  # in formulas the type computed in, which a kernel binds

# For values in [-3, 3], of which none is near a limit: clamp has corners there.
_LIMITS = ((-4.0, 4.5), (-np.inf, 4.0), (-np.inf, -4.0), (4.0, np.inf), (3.5, 3.5))


def _around(d: Draw, shape: tuple[int, ...]) -> Tensor:
    """Values below -1, around 0 and above 1."""
    bands = ((-3.0, -1.25), (-0.75, 0.75), (1.25, 3.0))
    return concat(*(d.floats(shape, low, high, layouts=("contiguous",)) for low, high in bands))


def _limited(d: Draw) -> Call:
    if d.choice([True, False]):
        return call(_around(d, d.shape()), -1.0, 1.0)
    return call(d.floats(d.shape(min_axes=0)), *d.choice(_LIMITS))


def _limited_and_gradient(d: Draw) -> Call:
    if d.choice([True, False]):
        x = _around(d, d.shape())
        return call(x, d.floats(x.shape), -1.0, 1.0)
    shape = d.shape(min_axes=0)
    return call(d.floats(shape), d.floats(shape), *d.choice(_LIMITS))


def _errors(name: str, n_args: int = 1) -> list[ErrorSample]:
    def run(value: ArrayLike, low: float, high: float) -> Tensor:
        return REGISTRY[name](*[tensor(value)] * n_args, low, high)

    return [
        ErrorSample(lambda: run([1, 2], 0.0, 1.0), DtypeError, "i32"),
        ErrorSample(lambda: run([1.0], 1.0, 0.0), SettingError, "low=1.0 and high=0.0"),
        ErrorSample(lambda: run([1.0], np.nan, 1.0), SettingError, "low=nan"),
    ]


def _check_limits(name: str, low: float, high: float) -> None:
    if not low <= high:
        raise SettingError(f"{name}: got low={low} and high={high}, want low <= high")


def _clamp(x, low, high, p2, p3):
    return low if x < low else (high if x > high else x)


def _clamp_grad(y: Tensor, g: Tensor) -> Tensor:
    return clamp_back(y.srcs[0], g, y.params["low"], y.params["high"])


@op(
    lower=lower_map(Map(_clamp, 1), ("low", "high")),
    vjp=(_clamp_grad,),
    reference=lambda x, low, high: np.minimum(np.maximum(x, low), high),
    samples=_limited,
    error_samples=lambda: _errors("clamp"),
    inplace=(0,),
    family="unary",
)
def clamp(x: Tensor, low: float, high: float) -> Result:
    """Limit to a range: y = min(max(x, low), high); NaN stays.

    Args:
        x: float tensor of any shape.
        low, high: the limits, low <= high; infinite ones do not limit.
    Raises:
        SettingError: low > high.
    Gradient: with respect to `x`, that of the elements within the limits or on them
    (`clamp_back`; ggml has none). Source: ggml_clamp.

    >>> clamp(tensor([-2.0, 0.5, 2.0]), -1.0, 1.0).numpy()
    array([-1. ,  0.5,  1. ], dtype=float32)
    """
    _check_limits("clamp", low, high)
    return float_like("clamp", x, low=float(low), high=float(high))


def _clamp_slope(x, g, low, high, p2, p3):
    return real(0) if x < low or x > high else g


def _clamp_back_reference(x: Array, g: Array, low: float, high: float) -> Array:
    return np.asarray(np.where((x < low) | (x > high), 0.0, g))


@op(
    lower=lower_map(Map(_clamp_slope, 2), ("low", "high")),
    vjp=(
        lambda y, u: fill(y.srcs[0], 0.0),  # a step function of x
        _clamp_grad,
    ),
    reference=_clamp_back_reference,
    samples=_limited_and_gradient,
    error_samples=lambda: _errors("clamp_back", 2),
    inplace=(0, 1),
    family="unary",
)
def clamp_back(x: Tensor, g: Tensor, low: float, high: float) -> Result:
    """Gradient of `clamp` at `x` times `g`: g where low <= x <= high, else 0.

    Args:
        x, g: float, of the same shape.
    Gradient: with respect to both (0 for `x`). Source: derived from `clamp`; ggml has none.

    >>> clamp_back(tensor([-2.0, 0.5, 2.0]), tensor([1.0, 1.0, 1.0]), -1.0, 1.0).numpy()
    array([0., 1., 0.], dtype=float32)
    """
    _check_limits("clamp_back", low, high)
    return alike("clamp_back", x, g, low=float(low), high=float(high))


def fill(x: Tensor, value: float) -> Tensor:
    """A tensor of the shape and dtype of `x`, every element `value`.

    Gradient: none reaches `x`. Source: ggml_fill.

    >>> fill(tensor([1.0, 2.0]), 7.0).numpy()
    array([7., 7.], dtype=float32)
    """
    need_float("fill", x)
    return repeat(tensor(float(value), x.dtype), x.shape)


def add1(a: Tensor, b: Tensor) -> Tensor:
    """Add a tensor of one element to every element of `a`.

    Raises:
        ShapeError: `b` has more elements or more axes than `a`.
    Gradient: with respect to both; that of `b` is the sum over all elements (ggml takes the
    mean, which is wrong). Source: ggml_add1.

    >>> add1(tensor([1.0, 2.0]), tensor([10.0])).numpy()
    array([11., 12.], dtype=float32)
    """
    if b.size != 1 or b.ndim > a.ndim:
        raise ShapeError(f"add1: got {a.shape} and {b.shape}, want one element to be added")
    return add(a, b)


def scale_bias(x: Tensor, s: float, b: float) -> Tensor:
    """y = s · x + b, with numbers fixed when the graph is recorded.

    Gradient: with respect to `x`. Source: ggml_scale_bias.

    >>> scale_bias(tensor([1.0, 2.0]), 2.0, 0.5).numpy()
    array([2.5, 4.5], dtype=float32)
    """
    need_float("scale_bias", x)
    return add(scale(x, s), tensor(float(b), x.dtype))
