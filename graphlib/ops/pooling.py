"""Pooling: the largest element or the mean of windows, and their gradients."""

import math
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.errors import ShapeError
from yupana.graphlib.kernels import pooling as kernels
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, Result, Site, call, op
from yupana.graphlib.ops._pooling import (
    draw_windows,
    each_window,
    errors_of,
    fit,
    flat,
    geometry,
    kind_of,
    one_per_window,
    planes_of,
    work_of,
)
from yupana.graphlib.ops._rules import float_dtype, four_axes, need_axes, need_same_shape
from yupana.graphlib.ops._windows import Sizes
from yupana.graphlib.ops.clip import fill
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.ops.views import reshape
from yupana.graphlib.tensor import Tensor


def _lower_pool(site: Site) -> list[Step]:
    p, x = site.params, site.srcs[0]
    whole, is_max = p["count_padding"], p["kind"] == "max"
    return kernels.pool(four_axes(site.dst), four_axes(x), geometry(x.shape, p), is_max, whole)


def _lower_back(site: Site) -> list[Step]:
    p, (g, x) = site.params, site.srcs
    whole, is_max = p["count_padding"], p["kind"] == "max"
    planes = (four_axes(site.dst), four_axes(g), four_axes(x))
    return kernels.pool_back(*planes, geometry(x.shape, p), is_max, whole)


def _lower_at(site: Site) -> list[Step]:
    u, x = site.srcs
    windows = geometry(x.shape, site.params)
    return kernels.at_largest(four_axes(site.dst), four_axes(u), four_axes(x), windows)


def _pool_reference(x: Array, kind: str, **p: Any) -> Array:
    y = one_per_window(x, p)
    for place, part, count in each_window(x, p):
        elements = flat(x[part])
        y[(..., *place)] = elements.max(-1) if kind == "max" else elements.sum(-1) / count
    return y


def _back_reference(g: Array, x: Array, kind: str, **p: Any) -> Array:
    dx = np.zeros(x.shape)
    for place, part, count in each_window(x, p):
        elements, grad = flat(x[part]), g[(..., *place)][..., None]
        chosen = np.ones(elements.shape, bool)
        if kind == "max":  # NumPy's argmax is the first
            chosen = np.arange(elements.shape[-1]) == elements.argmax(-1)[..., None]
        share = np.where(chosen, grad / (1 if kind == "max" else count), 0.0)
        dx[part] += share.reshape(dx[part].shape)
    return dx


def _at_reference(u: Array, x: Array, **p: Any) -> Array:
    y = one_per_window(x, p)
    for place, part, _ in each_window(x, p):
        at = flat(x[part]).argmax(-1)[..., None]
        y[(..., *place)] = np.take_along_axis(flat(u[part]), at, -1)[..., 0]
    return y


def _pool_sample(d: Draw) -> Call:
    shape, _, p = draw_windows(d)
    return call(d.floats(shape), d.choice(["max", "avg"]), **p, count_padding=d.choice([1, 0]) == 1)


def _back_sample(d: Draw) -> Call:
    shape, found, p = draw_windows(d)
    kind, whole = d.choice(["max", "avg"]), d.choice([True, False])
    return call(d.floats(found), planes_of(d, shape), kind, **p, count_padding=whole)


def _at_sample(d: Draw) -> Call:
    shape, _, p = draw_windows(d)
    return call(d.floats(shape), planes_of(d, shape), **p)


def _pool_grad(y: Tensor, g: Tensor) -> Tensor:
    return pool_2d_back(g, y.srcs[0], **y.params)


@op(
    lower=_lower_pool,
    vjp=(_pool_grad,),
    reference=_pool_reference,
    samples=_pool_sample,
    error_samples=lambda: errors_of("pool_2d"),
    cost=work_of,
    family="convolution",
)
def pool_2d(
    x: Tensor,
    kind: str,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    count_padding: bool = True,
) -> Result:
    """The largest element, or the mean, of each window of the planes in the last two axes.

    Args:
        x: (…, H, W) float.
        kind: "max" or "avg". A NaN in a window is its largest element.
        window, stride, padding: one number, or (rows, columns); stride None: the window.
            What lies outside the plane is no maximum and adds nothing to a sum.
        count_padding: divide by the whole window, as ggml does here, not by its part inside.
    Returns:
        (…, rows, columns), rows = (H + 2·padding - window) / stride + 1 rounded down; dtype of
        `x`.
    Raises:
        SettingError: padding as large as the window, or another kind. ShapeError: no window fits.
    Gradient: with respect to `x`; of several largest elements of a window the first, row by row,
    gets all of it.
    Source: ggml_pool_2d.

    >>> pool_2d(tensor([[1.0, 2.0, 3.0, 5.0]]), "avg", (1, 2)).numpy()
    array([[1.5, 4. ]], dtype=float32)
    """
    made = kind_of("pool_2d", kind, count_padding)
    shape, p = fit("pool_2d", x, window, stride, padding)
    return Result((x,), shape, x.dtype, {**made, **p})


def _back_grad(y: Tensor, u: Tensor) -> Tensor:
    """With respect to g, in which the node is linear."""
    p = dict(y.params)
    if p["kind"] == "avg":
        return pool_2d(u, **p)
    return pool_2d_at(u, y.srcs[1], p["window"], p["stride"], p["padding"])


def _none(y: Tensor, u: Tensor) -> Tensor:
    """With respect to x, on which depends only where gradients go."""
    return fill(y.srcs[1], 0.0)


@op(
    lower=_lower_back,
    vjp=(_back_grad, _none),
    reference=_back_reference,
    samples=_back_sample,
    error_samples=lambda: errors_of("pool_2d_back"),
    cost=work_of,
    family="convolution",
)
def pool_2d_back(
    g: Tensor,
    x: Tensor,
    kind: str,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    count_padding: bool = True,
) -> Result:
    """Gradient of `pool_2d` at `x`, times `g`.

    Args:
        g: what `pool_2d` gives for `x` and these settings, in shape. The rest is as there.
    Gradient: with respect to both (0 for `x`). Source: ggml_pool_2d_back.

    >>> x = tensor([[7.0, 7.0, 1.0, 2.0]])
    >>> pool_2d_back(tensor([[10.0, 20.0]]), x, "max", (1, 2)).numpy()
    array([[10.,  0.,  0., 20.]], dtype=float32)
    """
    made = kind_of("pool_2d_back", kind, count_padding)
    shape, p = fit("pool_2d_back", x, window, stride, padding)
    if g.shape != shape:
        raise ShapeError(f"pool_2d_back: got g {g.shape}, want {shape}: one element per window")
    return Result((g, x), x.shape, float_dtype("pool_2d_back", g, x), {**made, **p})


def _at_grad(y: Tensor, g: Tensor) -> Tensor:
    return pool_2d_back(g, y.srcs[1], "max", **y.params)


@op(
    lower=_lower_at,
    vjp=(_at_grad, _none),
    reference=_at_reference,
    samples=_at_sample,
    error_samples=lambda: errors_of("pool_2d_at"),
    cost=work_of,
    family="convolution",
)
def pool_2d_at(
    u: Tensor, x: Tensor, window: Sizes, stride: Sizes | None = None, padding: Sizes = 0
) -> Result:
    """The element of `u` at the place of the first largest element of each window of `x`.

    With it the gradient of largest elements has a gradient; `pool_2d` is `pool_2d_at(x, x)`.

    Args:
        u, x: (…, H, W) float, of the same shape. The rest as in `pool_2d`.
    Gradient: with respect to both (0 for `x`). Source: derived from `pool_2d`; ggml has none.

    >>> pool_2d_at(tensor([[1.0, 2.0]]), tensor([[9.0, 8.0]]), (1, 2)).numpy()
    array([[1.]], dtype=float32)
    """
    need_same_shape("pool_2d_at", u, x)
    shape, p = fit("pool_2d_at", x, window, stride, padding)
    return Result((u, x), shape, float_dtype("pool_2d_at", u, x), p)


def pool_1d(
    x: Tensor, kind: str, window: int, stride: int | None = None, padding: int = 0
) -> Tensor:
    """The largest element, or the mean, of each window of the last axis.

    A mean is taken over the part of the window inside, as ggml does here (but not in `pool_2d`).

    Args:
        x: (…, L) float. kind, window, stride, padding: as in `pool_2d`.
    Returns:
        (…, (L + 2·padding - window) / stride + 1), rounded down.
    Gradient: with respect to `x`. Source: ggml_pool_1d.

    >>> pool_1d(tensor([2.0, 4.0, 6.0]), "avg", 2, padding=1).numpy()
    array([2., 5.], dtype=float32)
    """
    need_axes("pool_1d", x, 1)
    rows = reshape(contiguous(x), (math.prod(x.shape[:-1]), 1, x.shape[-1]))
    step = window if stride is None else stride
    y = pool_2d(rows, kind, (1, window), (1, step), (0, padding), count_padding=False)
    return reshape(y, (*x.shape[:-1], y.shape[-1]))
