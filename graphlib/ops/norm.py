"""Rows scaled to unit root mean square, and what their gradients need."""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.rowwise import Rows, row_dot
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Result, op
from yupana.graphlib.ops._norms import (
    need_rows,
    rows_and_gradient,
    rows_errors,
    rows_sample,
    second_derivative,
)
from yupana.graphlib.ops._rules import alike, float_like, lower_rows, need_float
from yupana.graphlib.ops.arithmetic import mul, scale
from yupana.graphlib.ops.reduction import mean
from yupana.graphlib.ops.unary import sqr
from yupana.graphlib.tensor import Tensor

EPS = 1e-6  # ggml's default
real: Any = float  # in row functions the type computed in, which a kernel binds


def _inverse_rms(y, x, i, p):
    y[0] = real(1) / np.sqrt(row_dot(x, x) / real(max(x.size, 1)) + real(p[0]))


def _inverse_rms_reference(x: Array, eps: float) -> Array:
    squares = np.square(x).sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 / np.sqrt(squares / max(x.shape[-1], 1) + eps))


def _inverse_rms_grad(y: Tensor, g: Tensor) -> Tensor:
    """d(1/rms)/dx = -x / (D rms³)."""
    x = y.srcs[0]
    return mul(x, scale(mul(g, mul(y, sqr(y))), -1.0 / max(x.shape[-1], 1)))


@op(
    lower=lower_rows(Rows(_inverse_rms, 1), ("eps",)),
    vjp=(_inverse_rms_grad,),
    reference=_inverse_rms_reference,
    samples=rows_sample,
    error_samples=lambda: rows_errors("inverse_rms"),
    cost=3.0,
    family="norm",
)
def inverse_rms(x: Tensor, eps: float = EPS) -> Result:
    """One over the root mean square of each row: (…, D) → (…, 1).

        y[...] = 1 / sqrt(mean_d(x[..., d]²) + eps)

    Gradient: with respect to `x`. Second derivatives of `rms_norm` are made of it.
    Source: derived from `rms_norm`; ggml has none.

    >>> inverse_rms(tensor([3.0, 4.0])).numpy().round(4)
    array([0.2828], dtype=float32)
    """
    need_float("inverse_rms", x)
    need_rows("inverse_rms", x, eps)
    return Result((x,), (*x.shape[:-1], 1), x.dtype, {"eps": float(eps)})


def _rms_norm(y, x, i, p):
    r = real(1) / np.sqrt(row_dot(x, x) / real(max(x.size, 1)) + real(p[0]))
    for j in range(x.size):
        y[j] = x[j] * r


def _rms_norm_grad(y: Tensor, g: Tensor) -> Tensor:
    return rms_norm_back(y.srcs[0], g, y.params["eps"])


def _rms_norm_reference(x: Array, eps: float) -> Array:
    return x * _inverse_rms_reference(x, eps)


@op(
    lower=lower_rows(Rows(_rms_norm, 1), ("eps",)),
    vjp=(_rms_norm_grad,),
    reference=_rms_norm_reference,
    samples=rows_sample,
    error_samples=lambda: rows_errors("rms_norm"),
    inplace=(0,),
    cost=4.0,
    family="norm",
)
def rms_norm(x: Tensor, eps: float = EPS) -> Result:
    """Scale each row to unit root mean square.

        y[..., d] = x[..., d] / sqrt(mean_d(x[..., d]²) + eps)

    Args:
        x: (…, D) float. Rows to normalise.
        eps: added to the mean square; dimensionless.
    Returns:
        (…, D), dtype of `x`.
    Raises:
        ShapeError: `x` has no axes. SettingError: `eps` is negative.
    Gradient: with respect to `x` (`rms_norm_back`).
    Source: Zhang & Sennrich 2019, eq. 4; ggml_rms_norm.

    >>> rms_norm(tensor([3.0, 4.0])).numpy().round(3)
    array([0.849, 1.131], dtype=float32)
    """
    need_rows("rms_norm", x, eps)
    return float_like("rms_norm", x, eps=float(eps))


def _rms_norm_back(y, x, g, i, p):
    mean_square = row_dot(x, x) / real(x.size) + real(p[0])
    r = real(1) / np.sqrt(mean_square)
    c = row_dot(x, g) / (real(x.size) * mean_square)
    for j in range(x.size):
        y[j] = r * (g[j] - c * x[j])


def _rms_norm_back_reference(x: Array, g: Array, eps: float) -> Array:
    r = _inverse_rms_reference(x, eps)
    product = (x * g).sum(axis=-1, keepdims=True) / np.float64(max(x.shape[-1], 1))
    return np.asarray(r * g - r**3 * product * x)


def _rms_norm_back_grad(node: Tensor, u: Tensor) -> Tensor:
    (x, g), eps = node.srcs, node.params["eps"]
    return second_derivative(u, inverse_rms(x, eps), rms_norm(x, eps), g, mean)


@op(
    lower=lower_rows(Rows(_rms_norm_back, 2), ("eps",)),
    vjp=(
        _rms_norm_back_grad,
        _rms_norm_grad,  # the matrix of this linear map is symmetric
    ),
    reference=_rms_norm_back_reference,
    samples=rows_and_gradient,
    error_samples=lambda: rows_errors("rms_norm_back", 2),
    inplace=(0, 1),
    cost=8.0,
    family="norm",
)
def rms_norm_back(x: Tensor, g: Tensor, eps: float = EPS) -> Result:
    """Gradient of `rms_norm` at `x` times `g`.

        y = r g - r³ x mean_d(x g),  r = 1 / sqrt(mean_d(x²) + eps)

    Args:
        x, g: (…, D) float, of the same shape.
    Gradient: with respect to both. Source: ggml_rms_norm_back (which stores it scaled).

    >>> rms_norm_back(tensor([3.0, 4.0]), tensor([1.0, 0.0])).numpy().round(3)
    array([ 0.181, -0.136], dtype=float32)
    """
    need_rows("rms_norm_back", x, eps)
    return alike("rms_norm_back", x, g, eps=float(eps))


def _rms_norm_mul(y, x, w, i, p):
    r = real(1) / np.sqrt(row_dot(x, x) / real(x.size) + real(p[0]))
    for j in range(x.size):
        y[j] = x[j] * r * w[j]


_rms_norm_mul_rows = Rows(_rms_norm_mul, 2)


def rms_norm_mul_steps(dst: View, x: View, w: View, eps: float) -> list[Step]:
    """`mul(rms_norm(x, eps), w)` in one pass; `w` ends in an axis as long as that of `x`."""
    return _rms_norm_mul_rows.steps(dst, [x, w], [eps])


def _rms_norm_mul_back(y, x, w, g, i, p):
    for j in range(x.size):
        y[j] = g[j] * w[j]
    mean_square = row_dot(x, x) / real(x.size) + real(p[0])
    r = real(1) / np.sqrt(mean_square)
    c = row_dot(x, y) / (real(x.size) * mean_square)
    for j in range(x.size):
        y[j] = r * (y[j] - c * x[j])


_rms_norm_mul_back_rows = Rows(_rms_norm_mul_back, 3)


def rms_norm_mul_back_steps(dst: View, x: View, w: View, g: View, eps: float) -> list[Step]:
    """`rms_norm_back(x, mul(g, w), eps)` in one pass: what reaches `x` through the pair."""
    return _rms_norm_mul_back_rows.steps(dst, [x, w, g], [eps])


def _add_rms_norm(y, total, a, b, i, p):
    for j in range(a.size):
        total[j] = a[j] + b[j]
    r = real(1) / np.sqrt(row_dot(total, total) / real(a.size) + real(p[0]))
    for j in range(a.size):
        y[j] = total[j] * r


_add_rms_norm_rows = Rows(_add_rms_norm, 3)


def add_rms_norm_steps(dst: View, total: View, a: View, b: View, eps: float) -> list[Step]:
    """`total = add(a, b)` and `rms_norm(total, eps)` in one pass.

    `total` goes to the kernel as a source, and is written where it lies: it must be contiguous
    and of the type computed in.
    """
    return _add_rms_norm_rows.steps(dst, [total, a, b], [eps])
