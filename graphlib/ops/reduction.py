"""Sums over axes, and the repetition that undoes them."""

import builtins  # this module has a `sum` of its own

import numpy as np

from yupana.graphlib.context import check_shape, tensor
from yupana.graphlib.dtypes import i8, i16
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import reduce
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.rowwise import Rows, row_sum
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.transpose import steps as _turning_steps
from yupana.graphlib.op import (
    REGISTRY,
    Array,
    Call,
    Cost,
    Draw,
    ErrorSample,
    Result,
    Site,
    call,
    op,
)
from yupana.graphlib.ops._rules import need_axes, need_float, need_plain, unary_samples, view
from yupana.graphlib.tensor import Tensor

_copy = Map(lambda x, p0, p1, p2, p3: x, 1, ns=0.1)


def copy_steps(dst: View, src: View) -> list[Step]:
    """Copy with conversion and broadcasting."""
    return _turning_steps(dst, src) or _copy.steps(dst, [src])


def _is_tiling(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    if len(small) > len(large):
        return False
    tail = large[len(large) - len(small) :]
    return all((n % k == 0) if k else n == 0 for k, n in zip(small, tail, strict=True))


def _tile_reference(x: Array, shape: tuple[int, ...]) -> Array:
    aligned = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    if 0 in shape:
        return np.zeros(shape, x.dtype)
    return np.tile(aligned, [n // k for n, k in zip(shape, aligned.shape, strict=True)])


def _untile_reference(x: Array, shape: tuple[int, ...]) -> Array:
    full = (1,) * (x.ndim - len(shape)) + tuple(shape)
    if 0 in full:
        return np.zeros(shape)
    split = [m for n, k in zip(x.shape, full, strict=True) for m in (n // k, k)]
    return np.asarray(x.reshape(split).sum(axis=tuple(range(0, 2 * x.ndim, 2))).reshape(shape))


def _lower_repeat(site: Site) -> list[Step]:
    """One copy for every tile along the axes that are repeated but not broadcast."""
    dst, src = view(site.dst), view(site.srcs[0])
    if 0 in dst.shape:
        return []
    missing = len(dst.shape) - len(src.shape)
    shape = (1,) * missing + src.shape
    counts = [1 if k == 1 else n // k for n, k in zip(dst.shape, shape, strict=True)]
    size = tuple(n if k == 1 else k for n, k in zip(dst.shape, shape, strict=True))
    steps: list[Step] = []
    for tile in np.ndindex(*counts):
        offset = builtins.sum(t * k * s for t, k, s in zip(tile, shape, dst.strides, strict=True))
        part = View(dst.address + offset, size, dst.strides, dst.code, dst.itemsize)
        steps += copy_steps(part, src)
    return steps


def _tiles(d: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    small = d.shape(min_axes=0, max_side=4)
    large = (*d.shape(min_axes=0, max_axes=4 - len(small), max_side=3), *small)
    at = len(large) - len(small)
    return small, tuple(n * (d.integer(1, 3) if k >= at else 1) for k, n in enumerate(large))


def _repeat_sample(d: Draw) -> Call:
    small, large = _tiles(d)
    return call(d.integers(small, -9, 9) if d.integer(0, 3) == 0 else d.floats(small), large)


def _repeat_back_sample(d: Draw) -> Call:
    small, large = _tiles(d)
    return call(d.floats(large), small)


@op(
    lower=_lower_repeat,
    vjp=(lambda y, g: repeat_back(g, y.srcs[0].shape),),
    reference=_tile_reference,
    samples=_repeat_sample,
    error_samples=lambda: [
        ErrorSample(lambda: repeat(tensor([1.0, 2.0]), (3,)), ShapeError, "multiple"),
        ErrorSample(lambda: repeat(tensor(np.ones(32), "Q8_0"), (64,)), DtypeError, "Q8_0"),
    ],
    family="reduction",
)
def repeat(x: Tensor, shape: tuple[int, ...]) -> Result:
    """Tile to a larger shape: y[i, j] = x[i mod n, j mod m].

    Args:
        x: (n, m, …) float or i32.
        shape: what comes out; each size a multiple of that of `x`, axes aligned at the last.
    Gradient: with respect to `x` (`repeat_back`). Source: ggml_repeat.

    >>> repeat(tensor([1.0, 2.0]), (2, 4)).numpy()
    array([[1., 2., 1., 2.],
           [1., 2., 1., 2.]], dtype=float32)
    """
    shape = check_shape("repeat", shape)
    need_plain("repeat", x)
    if not _is_tiling(x.shape, shape):
        raise ShapeError(f"repeat: got {x.shape} to {shape}, want sizes that are a multiple")
    return Result((x,), shape, x.dtype, {"shape": shape})


@op(
    lower=lambda site: reduce.sum_to(view(site.dst), view(site.srcs[0])),
    vjp=(lambda y, g: repeat(g, y.srcs[0].shape),),
    reference=_untile_reference,
    samples=_repeat_back_sample,
    error_samples=lambda: [
        ErrorSample(lambda: repeat_back(tensor([1.0, 2.0, 3.0]), (2,)), ShapeError, "divide")
    ],
    cost=lambda y: Cost(y.srcs[0].size, y.srcs[0].nbytes + y.nbytes),
    family="reduction",
)
def repeat_back(x: Tensor, shape: tuple[int, ...]) -> Result:
    """Sum the tiles of `x` down to `shape`: the gradient of `repeat` and of broadcasting.

    Args:
        x: float; each size a multiple of that in `shape`, axes aligned at the last.
    Gradient: with respect to `x` (`repeat`). Source: ggml_repeat_back.

    >>> repeat_back(tensor([[1.0, 2.0, 3.0, 4.0]]), (2,)).numpy()
    array([4., 6.], dtype=float32)
    """
    shape = check_shape("repeat_back", shape)
    need_float("repeat_back", x)
    if not _is_tiling(shape, x.shape):
        raise ShapeError(f"repeat_back: got {x.shape} to {shape}, want sizes that divide it")
    return Result((x,), shape, x.dtype, {"shape": shape})


@op(
    lower=lambda site: reduce.sum_all(view(site.dst), view(site.srcs[0]), 1.0, site.workspace),
    vjp=(lambda y, g: repeat(g, y.srcs[0].shape),),
    reference=np.sum,
    samples=unary_samples(),
    error_samples=lambda: [
        ErrorSample(lambda: sum(tensor(np.ones(32), "Q8_0")), DtypeError, "Q8_0"),
        ErrorSample(lambda: sum(tensor([1, 2], "i8")), DtypeError, "i8, which holds no sum"),
    ],
    cost=lambda y: Cost(y.srcs[0].size, y.srcs[0].nbytes),
    family="reduction",
)
def sum(x: Tensor) -> Result:
    """Add up all elements; no axes are left. Added in float64, rounded once.

    Args:
        x: float or i32, of any shape.
    Gradient: with respect to `x`. Source: ggml_sum.

    >>> sum(tensor([[1.0, 2.0], [3.0, 4.0]])).numpy()
    array(10., dtype=float32)
    """
    need_plain("sum", x)
    if x.dtype in (i8, i16):
        raise DtypeError(f"sum: got {x.dtype}, which holds no sum. Convert it with cast(x, 'i32').")
    return Result((x,), (), x.dtype)


def _sum_row(y, x, i, p):
    y[0] = row_sum(x) * p[0]


_sum_rows = Rows(_sum_row, 1, ns=0.2)


def _row_result(name: str, x: Tensor) -> Result:
    need_float(name, x)
    need_axes(name, x, 1)
    return Result((x,), (*x.shape[:-1], 1), x.dtype)


@op(
    lower=lambda site: _sum_rows.steps(view(site.dst), [view(site.srcs[0])], [1.0]),
    vjp=(lambda y, g: repeat(g, y.srcs[0].shape),),
    reference=lambda x: x.sum(axis=-1, keepdims=True),
    samples=lambda d: call(d.floats(d.shape())),
    error_samples=lambda: [ErrorSample(lambda: sum_rows(tensor(1.0)), ShapeError, "axes")],
    cost=lambda y: Cost(y.srcs[0].size, y.srcs[0].nbytes),
    family="reduction",
)
def sum_rows(x: Tensor) -> Result:
    """Sum each row: (…, D) → (…, 1).

    Gradient: with respect to `x`. Source: ggml_sum_rows.

    >>> sum_rows(tensor([[1.0, 2.0], [3.0, 4.0]])).numpy()
    array([[3.],
           [7.]], dtype=float32)
    """
    return _row_result("sum_rows", x)


def _mean_reference(x: Array) -> Array:
    return np.asarray(x.sum(axis=-1, keepdims=True) / max(x.shape[-1], 1))


@op(
    lower=lambda site: _sum_rows.steps(
        view(site.dst), [view(site.srcs[0])], [1.0 / max(site.srcs[0].shape[-1], 1)]
    ),
    vjp=(lambda y, g: _spread(g, y.srcs[0]),),
    reference=_mean_reference,
    samples=lambda d: call(d.floats(d.shape())),
    error_samples=lambda: [ErrorSample(lambda: mean(tensor(1.0)), ShapeError, "axes")],
    cost=lambda y: Cost(y.srcs[0].size, y.srcs[0].nbytes),
    family="reduction",
)
def mean(x: Tensor) -> Result:
    """Mean of each row: (…, D) → (…, 1); 0 for empty rows.

    Gradient: with respect to `x` (ggml has none). Source: ggml_mean.

    >>> mean(tensor([[1.0, 2.0], [3.0, 4.0]])).numpy()
    array([[1.5],
           [3.5]], dtype=float32)
    """
    return _row_result("mean", x)


def _spread(grad: Tensor, x: Tensor) -> Tensor:
    return repeat(REGISTRY["scale"](grad, 1.0 / max(x.shape[-1], 1)), x.shape)
