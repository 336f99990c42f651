"""Rows picked from a table by index: embeddings, and their gradient."""

import numpy as np

from yupana.graphlib.context import check_shape, tensor
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import gather
from yupana.graphlib.op import Array, Call, Cost, Draw, ErrorSample, Result, call, op
from yupana.graphlib.ops._rules import (
    need_axes,
    need_float,
    need_index,
    need_real,
    view,
    wide_dtype,
)
from yupana.graphlib.tensor import MAX_AXES, Tensor


def _get_rows_reference(table: Array, index: Array) -> Array:
    n_rows = table.shape[-2]
    in_table = (index >= 0) & (index < n_rows)
    # One more row, of NaN, for an index outside the table.
    padded = np.concatenate([table, np.full_like(table[..., :1, :], np.nan)], axis=-2)
    if n_rows == 0:
        padded = np.full((*table.shape[:-2], 1, table.shape[-1]), np.nan)
    position = np.where(in_table, index, n_rows)
    if table.ndim == 2:
        return padded[position]
    return np.take_along_axis(padded, position[..., None], axis=-2)


def _get_rows_back_reference(g: Array, index: Array, shape: tuple[int, ...]) -> Array:
    total = np.zeros(shape)
    for at in np.ndindex(*index.shape):
        if 0 <= index[at] < shape[-2]:
            batch = at[:-1] if len(shape) > 2 else ()
            total[(*batch, index[at])] += g[at]
    return total


def _table_and_index(d: Draw) -> tuple[tuple[int, ...], Tensor]:
    """Shape of a table and an index into it: batched alike, or one table for all."""
    rows, columns = d.integer(1, 9), d.choice([1, 3, 7, 16, 70])
    shape = d.shape(max_axes=3, max_side=5)
    batch = d.choice([(), shape[:-1]])
    return (*batch, rows, columns), d.integers(shape, 0, rows - 1)


def _get_rows_sample(d: Draw) -> Call:
    shape, index = _table_and_index(d)
    if d.choice([False, False, True]):
        return call(d.quantized((*shape[:-1], d.choice([32, 256, 512]))), index)
    return call(d.floats(shape, dtypes=("f32", "f16", "bf16", "f64")), index)


def _get_rows_back_sample(d: Draw) -> Call:
    shape, index = _table_and_index(d)
    g = d.floats((*index.shape, shape[-1]), dtypes=("f32", "f16", "bf16", "f64"))
    return call(g, index, shape)


def _get_rows_errors() -> list[ErrorSample]:
    table = tensor([[1.0, 2.0], [3.0, 4.0]])
    tables = tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    return [
        ErrorSample(lambda: get_rows(table, tensor([0.0])), DtypeError, "i32"),
        ErrorSample(lambda: get_rows(tensor([1, 2]), tensor([0])), DtypeError, "float"),
        ErrorSample(lambda: get_rows(tensor([1.0]), tensor([0])), ShapeError, "2 axes"),
        ErrorSample(lambda: get_rows(tables, tensor([0, 0])), ShapeError, "(2, 1, 2)"),
    ]


def _get_rows_back_errors() -> list[ErrorSample]:
    g, index = tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([0, 1])
    return [
        ErrorSample(lambda: get_rows_back(g, tensor([0.0, 1.0]), (3, 2)), DtypeError, "i32"),
        ErrorSample(lambda: get_rows_back(g, index, (2,)), ShapeError, "2 axes"),
        ErrorSample(lambda: get_rows_back(g, index, (3, 4)), ShapeError, "(2, 2)"),
    ]


def _picked_shape(name: str, table: tuple[int, ...], index: Tensor) -> tuple[int, ...]:
    """Shape of the rows that `index` picks from a table of shape `table`."""
    batch = table[:-2]
    if batch and index.shape[:-1] != batch:
        raise ShapeError(
            f"{name}: leading axes differ: got table {table} and index {index.shape}, want "
            f"index {(*batch, 'M')}, or a table of 2 axes for an index of any shape"
        )
    shape = (*index.shape, table[-1])
    if len(shape) > MAX_AXES:
        raise ShapeError(f"{name}: got index {index.shape}, want at most {MAX_AXES - 1} axes")
    return shape


def _table_grad(y: Tensor, g: Tensor) -> Tensor:
    return get_rows_back(g, y.srcs[1], y.srcs[0].shape)


@op(
    lower=lambda site: gather.get_rows(view(site.dst), view(site.srcs[0]), view(site.srcs[1])),
    vjp=(_table_grad, None),
    reference=_get_rows_reference,
    samples=_get_rows_sample,
    error_samples=_get_rows_errors,
    cost=lambda y: Cost(0.0, y.nbytes + y.srcs[0].dtype.row_bytes(y.size) + y.srcs[1].nbytes),
    family="rows",
)
def get_rows(table: Tensor, index: Tensor) -> Result:
    """Pick rows of a table, as an embedding does: y[…, m, :] = table[…, index[…, m], :].

    Args:
        table: (N, D) float or quantised, or (…, N, D) with the leading axes of `index`.
        index: (…, M) i32, of any shape for a table of two axes. A number outside [0, N) picks
            a row of NaN: indices are data, so a wrong one shows when the graph runs.

    Returns:
        (…, M, D): f64 for a table of f64, else f32.

    Raises:
        ShapeError: leading axes that differ. DtypeError: not a float table and an i32 index.
    Gradient: with respect to `table` (`get_rows_back`). Source: ggml_get_rows.

    >>> get_rows(tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([1, 0, 1])).numpy()
    array([[3., 4.],
           [1., 2.],
           [3., 4.]], dtype=float32)
    """
    need_real("get_rows", table)
    need_axes("get_rows", table, 2)
    need_index("get_rows", index)
    return Result((table, index), _picked_shape("get_rows", table.shape, index), wide_dtype(table))


@op(
    lower=lambda site: gather.add_rows(view(site.dst), view(site.srcs[0]), view(site.srcs[1])),
    vjp=(lambda y, g: get_rows(g, y.srcs[1]), None),
    reference=_get_rows_back_reference,
    samples=_get_rows_back_sample,
    error_samples=_get_rows_back_errors,
    cost=lambda y: Cost(y.srcs[0].size, y.nbytes + 2 * y.srcs[0].nbytes + y.srcs[1].nbytes),
    family="rows",
)
def get_rows_back(g: Tensor, index: Tensor, shape: tuple[int, ...]) -> Result:
    """Add rows into a table of zeros at the places an index says: the gradient of `get_rows`.

    Args:
        g: (…, M, D) float.
        index: (…, M) i32. Rows picked twice are added, in order; numbers outside [0, N) are
            left out.
        shape: the table's: (N, D), or (…, N, D) with the leading axes of `index`.

    Returns:
        `shape`: f64 for g of f64, else f32.

    Raises:
        ShapeError: `g` is not what `index` picks from such a table.
    Gradient: with respect to `g` (`get_rows`). Source: ggml_get_rows_back.

    >>> get_rows_back(tensor([[1.0], [2.0], [3.0]]), tensor([1, 0, 1]), (3, 1)).numpy()
    array([[2.],
           [4.],
           [0.]], dtype=float32)
    """
    name = "get_rows_back"
    need_float(name, g)
    need_index(name, index)
    shape = check_shape(name, shape)
    if len(shape) < 2:
        raise ShapeError(f"{name}: got a table of shape {shape}, want at least 2 axes")
    picked = _picked_shape(name, shape, index)
    if g.shape != picked:
        raise ShapeError(f"{name}: got g {g.shape}, want {picked}: index {index.shape} of {shape}")
    return Result((g, index), shape, wide_dtype(g), {"shape": shape})
