"""Soft maximum of rows, scaled, masked and biased first."""

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.softmax import soft_max_back_steps, soft_max_steps
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import (
    REGISTRY,
    Array,
    Call,
    Draw,
    ErrorSample,
    Result,
    Site,
    call,
    op,
)
from yupana.graphlib.ops._rules import alike, float_dtype, float_like, need_axes, unbroadcast, view
from yupana.graphlib.ops.arithmetic import mul, sub
from yupana.graphlib.ops.arithmetic import scale as scaled
from yupana.graphlib.ops.masks import alibi_slopes, diag_mask_inf
from yupana.graphlib.ops.reduction import sum_rows
from yupana.graphlib.tensor import Tensor


def _lower_soft_max(site: Site) -> list[Step]:
    src, *mask = (view(operand) for operand in site.srcs)
    factor = float(site.params["scale"])
    bias = float(site.params["max_bias"])
    return soft_max_steps(view(site.dst), src, mask[0] if mask else None, factor, bias)


def _slopes(x_shape: tuple[int, ...], max_bias: float) -> Array:
    """Slopes of the heads, to be broadcast over (…, H, T, S)."""
    n_heads = x_shape[-3] if len(x_shape) > 2 else 1
    slopes = alibi_slopes(n_heads, max_bias) if max_bias > 0 else np.ones(n_heads)
    return slopes[:, None, None] if len(x_shape) > 2 else slopes[0]


def _soft_max_reference(
    x: Array, mask: Array | None = None, scale: float = 1.0, max_bias: float = 0.0
) -> Array:
    z = x * scale
    if mask is not None:
        z = z + mask * _slopes(x.shape, max_bias)
    if z.size == 0:
        return np.asarray(z)
    largest = z.max(axis=-1, keepdims=True)
    e = np.exp(z - np.where(largest == -np.inf, 0.0, largest))
    total = e.sum(axis=-1, keepdims=True)
    return np.asarray(e / np.where(total == 0, 1.0, total))


def _soft_max_sample(d: Draw) -> Call:
    shape = d.shape(max_side=9)
    x, factor = d.floats(shape, -8.0, 8.0), d.choice([1.0, 0.125, -2.0])
    if d.choice([True, False]):
        return call(x, scale=factor)
    mask = d.floats((*d.broadcastable(shape[:-1]), shape[-1]))
    if mask.ndim >= 2 and d.choice([True, False]):
        mask = diag_mask_inf(mask, d.integer(0, 2))
    return call(x, mask, factor, d.choice([0.0, 8.0, 3.0]))


def _soft_max_errors() -> list[ErrorSample]:
    def run(*args: ArrayLike, **settings: float) -> Tensor:
        return REGISTRY["soft_max"](*map(tensor, args), **settings)

    return [
        ErrorSample(lambda: run([1, 2]), DtypeError, "i32"),
        ErrorSample(lambda: run(1.0), ShapeError, "at least 1 axes"),
        ErrorSample(lambda: run([1.0, 2.0], [1.0]), ShapeError, "mask"),
        ErrorSample(lambda: run([1.0], [[1.0], [1.0]]), ShapeError, "mask"),
        ErrorSample(lambda: run([1.0], max_bias=8.0), SettingError, "without a mask"),
        ErrorSample(lambda: run([1.0], max_bias=-1.0), SettingError, "max_bias=-1.0"),
    ]


def _input_grad(y: Tensor, g: Tensor) -> Tensor:
    return soft_max_back(g, y, y.params["scale"])


def _mask_grad(y: Tensor, g: Tensor) -> Tensor:
    grad, mask = soft_max_back(g, y), y.srcs[1]
    if y.params["max_bias"] > 0:
        dtype = grad.dtype if grad.dtype.name == "f64" else "f32"
        grad = mul(grad, tensor(_slopes(y.shape, y.params["max_bias"]), dtype))
    return unbroadcast(grad, mask)


def _covers(mask: Tensor, x: Tensor) -> bool:
    """Whether a mask has whole rows of `x` and broadcasts over the axes before them."""
    if mask.ndim < 1 or mask.ndim > x.ndim or mask.shape[-1] != x.shape[-1]:
        return False
    outer = x.shape[x.ndim - mask.ndim :]
    return all(m in (1, n) for m, n in zip(mask.shape, outer, strict=True))


@op(
    lower=_lower_soft_max,
    vjp=(_input_grad, _mask_grad),
    reference=_soft_max_reference,
    samples=_soft_max_sample,
    error_samples=_soft_max_errors,
    inplace=(0,),
    cost=20.0,
    family="softmax",
)
def soft_max(
    x: Tensor, mask: Tensor | None = None, scale: float = 1.0, max_bias: float = 0.0
) -> Result:
    """Soft maximum of each row, scaled and masked first.

        y[..., j] = exp(z[..., j]) / sum_k exp(z[..., k]),  z = scale · x + slope · mask

    A row in which everything is -inf (hidden by its mask) becomes zeros, where ggml gives NaN:
    it attends to nothing, and no gradient flows through it.

    Args:
        x: (…, T, S) float.
        mask: float, added after scaling; its last axis is S, the axes before broadcast.
        scale: the factor, fixed when the graph is recorded.
        max_bias: above 0 the mask of each head (axis -3) is multiplied with a slope of its own,
            see `alibi_slopes`; a mask of negative distances then is ALiBi. 0: the slope is 1.
    Returns:
        The shape of `x`; the wider dtype.
    Raises:
        ShapeError: `x` has no axes, or the mask does not fit it.
        SettingError: `max_bias` is negative, or above 0 without a mask.
    Gradient: with respect to `x` and `mask` (`soft_max_back`).
    Source: ggml_soft_max_ext; Press et al. 2021.

    >>> soft_max(tensor([0.0, 0.0]), tensor([0.0, 1.0])).numpy().round(3)
    array([0.269, 0.731], dtype=float32)
    """
    need_axes("soft_max", x, 1)
    if not 0 <= max_bias < np.inf:
        raise SettingError(f"soft_max: got max_bias={max_bias}, want a number that is not negative")
    if max_bias > 0 and mask is None:
        raise SettingError(f"soft_max: got max_bias={max_bias} without a mask that it could scale")
    params = {"scale": float(scale), "max_bias": float(max_bias)}
    if mask is None:
        return float_like("soft_max", x, **params)
    if not _covers(mask, x):
        raise ShapeError(
            f"soft_max: mask does not fit: got {mask.shape} for {x.shape}, want the same last "
            "axis and sizes before it that are equal or 1"
        )
    return Result((x, mask), x.shape, float_dtype("soft_max", x, mask), params)


def _lower_soft_max_back(site: Site) -> list[Step]:
    grad, y = (view(operand) for operand in site.srcs)
    return soft_max_back_steps(view(site.dst), grad, y, float(site.params["scale"]))


def _soft_max_back_reference(g: Array, y: Array, scale: float) -> Array:
    return np.asarray(scale * y * (g - (y * g).sum(axis=-1, keepdims=True)))


def _back_of(g: ArrayLike, y: ArrayLike) -> Tensor:
    return REGISTRY["soft_max_back"](tensor(g), tensor(y))


def _soft_max_back_sample(d: Draw) -> Call:
    shape = d.shape(max_side=9)
    return call(d.floats(shape), d.floats(shape, 0.0, 1.0), d.choice([1.0, 0.125, -2.0]))


def _first_grad(node: Tensor, u: Tensor) -> Tensor:
    """With respect to g: the node is linear in it, by a symmetric matrix."""
    return soft_max_back(u, node.srcs[1], node.params["scale"])


def _second_grad(node: Tensor, u: Tensor) -> Tensor:
    """With respect to y: scale (u (g - <y, g>) - g <u, y>)."""
    g, y = node.srcs
    centred = sub(g, sum_rows(mul(y, g)))
    return scaled(sub(mul(u, centred), mul(g, sum_rows(mul(u, y)))), node.params["scale"])


@op(
    lower=_lower_soft_max_back,
    vjp=(_first_grad, _second_grad),
    reference=_soft_max_back_reference,
    samples=_soft_max_back_sample,
    error_samples=lambda: [
        ErrorSample(lambda: _back_of([1, 2], [1, 2]), DtypeError, "i32"),
        ErrorSample(lambda: _back_of(1.0, 1.0), ShapeError, "at least 1 axes"),
        ErrorSample(lambda: _back_of([1.0], [1.0, 2.0]), ShapeError, "differ"),
    ],
    inplace=(0, 1),
    cost=5.0,
    family="softmax",
)
def soft_max_back(g: Tensor, y: Tensor, scale: float = 1.0) -> Result:
    """Gradient of `soft_max` where its result is `y`, times `g`.

        dx = scale · y · (g - sum_k y[..., k] g[..., k])

    Args:
        g, y: (…, S) float, of the same shape.
    Gradient: with respect to both. Source: ggml_soft_max_back.

    >>> soft_max_back(tensor([1.0, 0.0]), tensor([0.5, 0.5])).numpy()
    array([ 0.25, -0.25], dtype=float32)
    """
    need_axes("soft_max_back", g, 1)
    return alike("soft_max_back", g, y, scale=float(scale))
