"""The order of rows: sorted indices, largest elements, and how often two tensors agree."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import f32, i32
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.blocks import View, contiguous_strides
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.reduce import sum_all
from yupana.graphlib.kernels.sort import ordered_indices
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Cost, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_axes, need_plain, need_same_shape, view
from yupana.graphlib.tensor import Tensor


def _lower_order(site: Site) -> list[Step]:
    return ordered_indices(view(site.dst), view(site.srcs[0]), site.params["descending"])


def _keys(x: Array) -> Array:
    """Numbers in the order of `x`, with NaN beyond infinity."""
    if x.size == 0:
        return x
    return np.unique(x, return_inverse=True)[1].reshape(x.shape)


def _order_reference(x: Array, descending: bool, k: int | None = None) -> Array:
    keys = -_keys(x) if descending else _keys(x)
    return np.argsort(keys, axis=-1, kind="stable")[..., :k]


def _ties(d: Draw, shape: tuple[int, ...]) -> Tensor:
    """Values of which many are equal, or none."""
    return d.integers(shape, -3, 3) if d.choice([True, False]) else d.floats(shape)


def _order_cost(y: Tensor) -> Cost:
    n = y.srcs[0].shape[-1]
    return Cost(y.srcs[0].size * np.log2(max(n, 2)), y.nbytes + y.srcs[0].nbytes)


@op(
    lower=_lower_order,
    vjp=None,
    reference=_order_reference,
    samples=lambda d: call(_ties(d, d.shape(max_side=9)), d.choice([False, True])),
    error_samples=lambda: [
        ErrorSample(lambda: argsort(tensor(1.0)), ShapeError, "1 axes"),
        ErrorSample(lambda: argsort(tensor(np.ones(32), "Q8_0")), DtypeError, "Q8_0"),
    ],
    cost=_order_cost,
    family="sort",
)
def argsort(x: Tensor, descending: bool = False) -> Result:
    """The indices that put each row in order; equal elements keep theirs.

    Args:
        x: (…, D), not quantised. NaN counts as the largest.
        descending: largest first.
    Returns:
        (…, D) i32.
    Raises:
        ShapeError: `x` has no axes.
    Gradient: none; indices are whole numbers. Source: ggml_argsort.

    >>> argsort(tensor([3.0, 1.0, 2.0])).numpy()
    array([1, 2, 0], dtype=int32)
    """
    need_plain("argsort", x)
    need_axes("argsort", x, 1)
    return Result((x,), x.shape, i32, {"descending": bool(descending)})


def _top_sample(d: Draw) -> Call:
    shape = (*d.shape(0, 3), d.choice([1, 2, 5, 9, 300]))
    return call(_ties(d, shape), d.integer(1, min(shape[-1], 9)))


def _lower_top_k(site: Site) -> list[Step]:
    return ordered_indices(view(site.dst), view(site.srcs[0]), True)


@op(
    lower=_lower_top_k,
    vjp=None,
    reference=lambda x, k: _order_reference(x, True, k),
    samples=_top_sample,
    error_samples=lambda: [
        ErrorSample(lambda: top_k(tensor(1.0), 1), ShapeError, "1 axes"),
        ErrorSample(lambda: top_k(tensor([1.0, 2.0]), 3), SettingError, "k=3"),
        ErrorSample(lambda: top_k(tensor([1.0, 2.0]), 0), SettingError, "k=0"),
    ],
    cost=_order_cost,
    family="sort",
)
def top_k(x: Tensor, k: int) -> Result:
    """The indices of the k largest elements of each row, largest first; of equals the first.

    Args:
        x: (…, D), not quantised. NaN counts as the largest.
        k: from 1 to D.
    Returns:
        (…, k) i32.
    Raises:
        ShapeError: `x` has no axes. SettingError: k outside its range.
    Gradient: none; indices are whole numbers. Source: ggml_top_k (in no order there).

    >>> top_k(tensor([3.0, 1.0, 2.0]), 2).numpy()
    array([0, 2], dtype=int32)
    """
    need_plain("top_k", x)
    need_axes("top_k", x, 1)
    if not 1 <= k <= x.shape[-1]:
        raise SettingError(f"top_k: got k={k} for rows of {x.shape[-1]}, want 1 to that")
    return Result((x,), (*x.shape[:-1], int(k)), i32, {"k": int(k)})


def argmax(x: Tensor) -> Tensor:
    """The index of the largest element of each row, the first of equals: (…, D) → (…) i32.

    NaN counts as the largest.

    Raises:
        ShapeError: `x` has no axes, or empty rows.
    Gradient: none; indices are whole numbers. Source: ggml_argmax.

    >>> argmax(tensor([[3.0, 1.0], [1.0, 2.0]])).numpy()
    array([0, 1], dtype=int32)
    """
    need_axes("argmax", x, 1)
    if x.shape[-1] == 0:
        raise ShapeError(f"argmax: got shape {x.shape}, want rows of at least one element")
    best = top_k(x, 1)
    return best[(..., 0)]


_equal = Map(lambda a, b, p0, p1, p2, p3: 1 if a == b else 0, 2)


def _lower_count_equal(site: Site) -> list[Step]:
    a, b = (view(operand) for operand in site.srcs)
    strides = contiguous_strides(a.shape, 4)
    marks = View(site.workspace(4 * site.srcs[0].size), a.shape, strides, f32.code, 4)
    return _equal.steps(marks, [a, b]) + sum_all(view(site.dst), marks, 1.0, site.workspace)


def _alike(d: Draw) -> Call:
    shape = d.shape(min_axes=0)
    return call(d.integers(shape, -1, 1), d.integers(shape, -1, 1))


@op(
    lower=_lower_count_equal,
    vjp=None,
    reference=lambda a, b: np.sum(a == b),
    samples=_alike,
    error_samples=lambda: [
        ErrorSample(lambda: count_equal(tensor([1]), tensor([1, 2])), ShapeError, "differ"),
        ErrorSample(lambda: count_equal(tensor([1]), tensor([1.0])), DtypeError, "f32"),
    ],
    cost=lambda y: Cost(y.srcs[0].size, y.srcs[0].nbytes + y.srcs[1].nbytes),
    family="reduction",
)
def count_equal(a: Tensor, b: Tensor) -> Result:
    """How many elements of two tensors are equal: correct answers among predictions.

    Args:
        a, b: of the same shape and dtype.
    Returns:
        () i32.
    Raises:
        ShapeError: shapes differ. DtypeError: dtypes differ.
    Gradient: none; a count is a whole number. Source: ggml_count_equal (i64 there).

    >>> count_equal(tensor([1, 2, 3]), tensor([1, 5, 3])).numpy()
    array(2, dtype=int32)
    """
    need_plain("count_equal", a, b)
    need_same_shape("count_equal", a, b)
    if a.dtype is not b.dtype:
        raise DtypeError(f"count_equal: got {a.dtype} and {b.dtype}, want the same dtype")
    return Result((a, b), (), i32)
