"""Rows brought to mean 0 and variance 1, or to length 1."""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.kernels.moments import products_about, squares_about
from yupana.graphlib.kernels.rowwise import Rows, row_sum
from yupana.graphlib.op import Array, Call, Draw, Result, call, op
from yupana.graphlib.ops._norms import (
    need_rows,
    rows_and_gradient,
    rows_errors,
    rows_sample,
    second_derivative,
)
from yupana.graphlib.ops._rules import alike, float_like, lower_rows
from yupana.graphlib.ops.arithmetic import div, mul, sub
from yupana.graphlib.ops.clip import clamp
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.ops.norm import inverse_rms
from yupana.graphlib.ops.reduction import mean, sum_rows
from yupana.graphlib.ops.unary import sqr, sqrt, step
from yupana.graphlib.ops.views import reshape
from yupana.graphlib.tensor import Tensor

real: Any = float  # in row functions the type computed in, which a kernel binds


def _norm(y, x, i, p):
    n = max(x.size, 1)
    middle = row_sum(x) / n
    r = 1 / np.sqrt(squares_about(x, middle) / n + p[0])
    for j in range(x.size):
        y[j] = real((x[j] - middle) * r)


def _centred_reference(x: Array) -> Array:
    return np.asarray(x - x.sum(axis=-1, keepdims=True) / max(x.shape[-1], 1))


def _norm_reference(x: Array, eps: float) -> Array:
    centred = _centred_reference(x)
    variance = np.square(centred).sum(axis=-1, keepdims=True) / max(x.shape[-1], 1)
    return np.asarray(centred / np.sqrt(variance + eps))


def _norm_grad(y: Tensor, g: Tensor) -> Tensor:
    return norm_back(y.srcs[0], g, y.params["eps"])


@op(
    lower=lower_rows(Rows(_norm, 1, ns=0.4), ("eps",)),
    vjp=(_norm_grad,),
    reference=_norm_reference,
    samples=rows_sample,
    error_samples=lambda: rows_errors("norm"),
    inplace=(0,),
    cost=7.0,
    family="norm",
)
def norm(x: Tensor, eps: float = 1e-5) -> Result:
    """Bring each row to mean 0 and variance 1, as layer normalisation does before its weights.

        y[..., d] = (x[..., d] - m) / sqrt(mean_d((x[..., d] - m)²) + eps),  m = mean_d(x[..., d])

    Args:
        x: (…, D) float. Rows to normalise.
        eps: added to the variance; dimensionless.
    Returns:
        (…, D), dtype of `x`.
    Raises:
        ShapeError: `x` has no axes. SettingError: `eps` is negative.
    Gradient: with respect to `x` (`norm_back`; ggml has none).
    Source: Ba, Kiros & Hinton 2016; ggml_norm.

    >>> norm(tensor([1.0, 2.0, 3.0])).numpy().round(3)
    array([-1.225,  0.   ,  1.225], dtype=float32)
    """
    need_rows("norm", x, eps)
    return float_like("norm", x, eps=float(eps))


def _norm_back(y, x, g, i, p):
    n = max(x.size, 1)
    middle, shift = row_sum(x) / n, row_sum(g) / n
    variance = squares_about(x, middle) / n + p[0]
    r = 1 / np.sqrt(variance)
    c = products_about(x, middle, g) / (n * variance)
    for j in range(x.size):
        y[j] = real(r * (g[j] - shift - c * (x[j] - middle)))


def _norm_back_reference(x: Array, g: Array, eps: float) -> Array:
    n = max(x.shape[-1], 1)
    centred = _centred_reference(x)
    r = 1 / np.sqrt(np.square(centred).sum(axis=-1, keepdims=True) / n + eps)
    y = centred * r
    return np.asarray(r * (_centred_reference(g) - y * (y * g).sum(axis=-1, keepdims=True) / n))


def _norm_back_grad(node: Tensor, u: Tensor) -> Tensor:
    x, g, u = (sub(t, mean(t)) for t in (*node.srcs, u))
    r = inverse_rms(x, node.params["eps"])
    return second_derivative(u, r, mul(x, r), g, mean)


@op(
    lower=lower_rows(Rows(_norm_back, 2, ns=0.6), ("eps",)),
    vjp=(
        _norm_back_grad,
        _norm_grad,  # the matrix of this linear map is symmetric
    ),
    reference=_norm_back_reference,
    samples=rows_and_gradient,
    error_samples=lambda: rows_errors("norm_back", 2),
    inplace=(0, 1),
    cost=12.0,
    family="norm",
)
def norm_back(x: Tensor, g: Tensor, eps: float = 1e-5) -> Result:
    """Gradient of `norm` at `x` times `g`.

        dx = r (g - mean_d(g) - y mean_d(y g)),  y = norm(x),  r = 1 / sqrt(variance + eps)

    Args:
        x, g: (…, D) float, of the same shape.
    Gradient: with respect to both. Source: derived from `norm`; ggml has none.

    >>> norm_back(tensor([1.0, 2.0, 3.0]), tensor([1.0, 0.0, 0.0])).numpy().round(3)
    array([ 0.204, -0.408,  0.204], dtype=float32)
    """
    need_rows("norm_back", x, eps)
    return alike("norm_back", x, g, eps=float(eps))


def group_norm(x: Tensor, n_groups: int, eps: float = 1e-6) -> Tensor:
    """`norm` over groups of channels and all positions of each image.

    Args:
        x: (C, H, W) or (B, C, H, W) float.
        n_groups: divides C.
        eps: added to the variance.
    Returns:
        The shape and dtype of `x`.
    Raises:
        ShapeError: another number of axes. SettingError: C is not a multiple of `n_groups`.
    Gradient: with respect to `x` (ggml has none). Source: Wu & He 2018; ggml_group_norm.

    >>> x = tensor([[[1.0]], [[3.0]], [[10.0]], [[30.0]]])
    >>> group_norm(x, 2).numpy().ravel().round(3)
    array([-1.,  1., -1.,  1.], dtype=float32)
    """
    if x.ndim not in (3, 4):
        raise ShapeError(f"group_norm: got shape {x.shape}, want (C, H, W) or (B, C, H, W)")
    channels = x.shape[-3]
    if n_groups < 1 or channels % n_groups:
        raise SettingError(
            f"group_norm: got n_groups={n_groups} for {channels} channels of {x.shape}, want a "
            "number that divides them"
        )
    batch = x.shape[0] if x.ndim == 4 else 1
    size = channels // n_groups * x.shape[-2] * x.shape[-1]
    rows = reshape(contiguous(x), (batch, n_groups, size))
    return reshape(norm(rows, eps), x.shape)


def _l2_norm(y, x, i, p):
    r = 1 / max(np.sqrt(squares_about(x, 0.0)), p[0])
    for j in range(x.size):
        y[j] = real(x[j] * r)


def _length_reference(x: Array, eps: float) -> Array:
    return np.asarray(np.maximum(np.sqrt(np.square(x).sum(axis=-1, keepdims=True)), eps))


def _l2_norm_grad(y: Tensor, g: Tensor) -> Tensor:
    return l2_norm_back(y.srcs[0], g, y.params["eps"])


# No row is nearly as long as one of these, where l2_norm has a corner.
_LENGTHS = (1e-12, 1e-3, 1e4)


def _lengths(d: Draw) -> Call:
    outer, n = d.shape(0, 3), d.integer(1, 9)
    low = 0.25 if n == 1 else -3.0  # numbers on either side of 0 become 1 and -1
    return call(d.floats((*outer, n), low), d.choice(_LENGTHS))


def _lengths_and_gradient(d: Draw) -> Call:
    shape = (*d.shape(0, 3), d.integer(2, 9))  # in rows of one element nothing is left
    return call(d.floats(shape), d.floats(shape), d.choice(_LENGTHS))


@op(
    lower=lower_rows(Rows(_l2_norm, 1), ("eps",)),
    vjp=(_l2_norm_grad,),
    reference=lambda x, eps: x / _length_reference(x, eps),
    samples=_lengths,
    error_samples=lambda: rows_errors("l2_norm"),
    inplace=(0,),
    cost=4.0,
    family="norm",
)
def l2_norm(x: Tensor, eps: float = 1e-12) -> Result:
    """Scale each row to length 1.

        y[..., d] = x[..., d] / max(sqrt(sum_d(x[..., d]²)), eps)

    Args:
        x: (…, D) float.
        eps: the least length divided by; 0 makes a row of zeros NaN.
    Raises:
        ShapeError: `x` has no axes. SettingError: `eps` is negative.
    Gradient: with respect to `x` (`l2_norm_back`; ggml has none). Source: ggml_l2_norm.

    >>> l2_norm(tensor([3.0, 4.0])).numpy()
    array([0.6, 0.8], dtype=float32)
    """
    need_rows("l2_norm", x, eps)
    return float_like("l2_norm", x, eps=float(eps))


def _l2_norm_back(y, x, g, i, p):
    length = np.sqrt(squares_about(x, 0.0))
    r = 1 / max(length, p[0])
    c = products_about(x, 0.0, g) * r * r if length > p[0] else 0.0
    for j in range(x.size):
        y[j] = real(r * (g[j] - c * x[j]))


def _l2_norm_back_reference(x: Array, g: Array, eps: float) -> Array:
    length = _length_reference(x, eps)
    along = np.where(length > eps, (x * g).sum(axis=-1, keepdims=True) / length**3, 0.0)
    return np.asarray(g / length - along * x)


def _l2_norm_back_grad(node: Tensor, u: Tensor) -> Tensor:
    # Rows shorter than eps are divided by a constant and have no second derivative.
    (x, g), eps = node.srcs, node.params["eps"]
    length = sqrt(sum_rows(sqr(x)))
    is_longer = step(sub(length, tensor(eps, length.dtype)))
    r = div(is_longer, clamp(length, eps, np.inf))
    return second_derivative(u, r, mul(x, r), g, sum_rows)


@op(
    lower=lower_rows(Rows(_l2_norm_back, 2), ("eps",)),
    vjp=(
        _l2_norm_back_grad,
        _l2_norm_grad,  # the matrix of this linear map is symmetric
    ),
    reference=_l2_norm_back_reference,
    samples=_lengths_and_gradient,
    error_samples=lambda: rows_errors("l2_norm_back", 2),
    inplace=(0, 1),
    cost=8.0,
    family="norm",
)
def l2_norm_back(x: Tensor, g: Tensor, eps: float = 1e-12) -> Result:
    """Gradient of `l2_norm` at `x` times `g`.

        dx = g / |x| - x sum_d(x g) / |x|³, and g / eps where |x| is below eps

    Args:
        x, g: (…, D) float, of the same shape.
    Gradient: with respect to both. Source: derived from `l2_norm`; ggml has none.

    >>> l2_norm_back(tensor([3.0, 4.0]), tensor([1.0, 0.0])).numpy().round(3)
    array([ 0.128, -0.096], dtype=float32)
    """
    need_rows("l2_norm_back", x, eps)
    return alike("l2_norm_back", x, g, eps=float(eps))
