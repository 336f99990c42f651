"""Rows written into a table where an index says: caches of keys and values."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, GraphError, ShapeError
from yupana.graphlib.kernels import scatter
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_axes, need_float, need_index, need_real, view
from yupana.graphlib.ops.clip import fill
from yupana.graphlib.ops.copies import cont
from yupana.graphlib.tensor import Tensor


def _check_index(name: str, shape: tuple[int, ...], index: Tensor) -> None:
    """Raise unless `index` has a number for each row of `shape`, leading axes broadcast."""
    need_index(name, index)
    rows = shape[:-1]
    fits = 0 < index.ndim <= len(rows) and index.shape[-1] == rows[-1]
    if not fits or any(
        n not in (1, m) for n, m in zip(index.shape[::-1], rows[::-1], strict=False)
    ):
        raise ShapeError(
            f"{name}: index does not fit: got {index.shape}, want {rows}, where leading axes may "
            "be 1 or missing"
        )


def _owners(index: Array, shape: tuple[int, ...], n_table: int) -> list[tuple[int, ...]]:
    """Positions (…, m) of the rows that end up in the table."""
    index = np.broadcast_to(index, shape[:-1])
    last = {(*at[:-1], int(index[at])): at for at in np.ndindex(*index.shape)}
    return [at for key, at in last.items() if 0 <= key[-1] < n_table]


def _set_rows_reference(a: Array, b: Array, index: Array) -> Array:
    out = a.copy()
    numbers = np.broadcast_to(index, b.shape[:-1])
    for at in _owners(index, b.shape, a.shape[-2]):
        out[(*at[:-1], numbers[at])] = b[at]
    return out


def _owned_reference(g: Array, index: Array) -> Array:
    shape = (*g.shape[:-2], index.shape[-1], g.shape[-1])
    out = np.zeros(shape)
    numbers = np.broadcast_to(index, shape[:-1])
    for at in _owners(index, shape, g.shape[-2]):
        out[at] = g[(*at[:-1], numbers[at])]
    return out


def _table_and_index(d: Draw) -> tuple[tuple[int, ...], Tensor]:
    rows, columns = d.integer(1, 9), d.choice([1, 3, 16, 70])
    batch = d.shape(0, 2, 4)
    index = d.integers((*d.broadcastable(batch), d.integer(1, 7)), -1, rows)
    return (*batch, rows, columns), index


def _set_rows_sample(d: Draw) -> Call:
    shape, index = _table_and_index(d)
    if d.choice([False, False, True]):
        shape = (*shape[:-1], 64)
        b = d.floats((*shape[:-2], index.shape[-1], 64), -2.9, 3.0, ("f32", "f16"))
        return call(d.quantized(shape, "Q8_0"), b, index)
    b = d.floats((*shape[:-2], index.shape[-1], shape[-1]))
    return call(d.floats(shape), b, index)


def _owned_sample(d: Draw) -> Call:
    shape, index = _table_and_index(d)
    return call(d.floats(shape), index)


def _set_rows_errors() -> list[ErrorSample]:
    table, row = tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([[5.0, 6.0]])
    first = tensor([0])
    return [
        ErrorSample(lambda: set_rows(table, row, tensor([0.0])), DtypeError, "i32"),
        ErrorSample(lambda: set_rows(table, tensor([[1, 2]]), first), DtypeError, "float"),
        ErrorSample(lambda: set_rows(tensor([1.0]), row, first), ShapeError, "2 axes"),
        ErrorSample(lambda: set_rows(table, tensor([[5.0]]), first), ShapeError, "(1, 1)"),
        ErrorSample(lambda: set_rows(table, row, tensor([0, 1])), ShapeError, "(2,)"),
        ErrorSample(lambda: set_rows(table, table[0:1], first), GraphError, "memory"),
    ]


def _kept(y: Tensor, g: Tensor) -> Tensor:
    """The gradient of the table: zero where it was overwritten."""
    _, b, index = y.srcs
    return set_rows(cont(g), fill(b, 0.0), index)


def _lower_set_rows(site: Site) -> list[Step]:
    table, rows, index = (view(operand) for operand in site.srcs)
    return scatter.set_rows(table, rows, index, site.workspace)


@op(
    lower=_lower_set_rows,
    vjp=(_kept, lambda y, g: set_rows_back(g, y.srcs[2]), None),
    reference=_set_rows_reference,
    samples=_set_rows_sample,
    error_samples=_set_rows_errors,
    mutates=(0,),
    cost=0.0,
    family="rows",
)
def set_rows(a: Tensor, b: Tensor, index: Tensor) -> Result:
    """Write rows into the memory of `a`: a[…, index[…, m], :] = b[…, m, :], converting.

    The result is a view of `a`. Readers of `a` recorded before this run before it, readers of
    the result after it. To keep `a` as it is, pass `cont(a)`.

    Args:
        a: (…, N, D) float or quantised.
        b: (…, M, D) float, with the leading axes of `a`.
        index: (…, M) i32; leading axes may be 1 or missing. Of equal numbers the last counts; a
            number outside [0, N) writes nothing.

    Returns:
        (…, N, D), the memory of `a`.

    Raises:
        ShapeError: shapes do not fit. DtypeError: not floats and an i32 index.
        GraphError: `b` lies in the memory of `a`.
    Gradient: with respect to `a` as it was before, and to `b` (`set_rows_back`; ggml has none).
    Source: ggml_set_rows.

    >>> import yupana
    >>> cache = tensor([[0.0], [0.0], [0.0]])
    >>> rows, index = tensor([[1.0], [2.0]]), tensor([2, 0])
    >>> yupana.Graph(set_rows(cache, rows, index)).compile().run()
    >>> cache.numpy().ravel()
    array([2., 0., 1.], dtype=float32)
    """
    need_real("set_rows", a)
    need_float("set_rows", b)
    need_axes("set_rows", a, 2)
    if b.ndim != a.ndim or b.shape[:-2] != a.shape[:-2] or b.shape[-1] != a.shape[-1]:
        raise ShapeError(
            f"set_rows: rows do not fit: got {b.shape} into {a.shape}, want "
            f"{(*a.shape[:-2], 'M', a.shape[-1])}"
        )
    _check_index("set_rows", b.shape, index)
    if b.root is a.root:
        raise GraphError(
            f"set_rows: {b.label} lies in the memory of {a.label}, which is written. Pass cont(b)."
        )
    return Result((a, b, index), a.shape, a.dtype, {}, a.strides, 0, a)


def _lower_owned(site: Site) -> list[Step]:
    table, index = (view(operand) for operand in site.srcs)
    return scatter.owned_rows(view(site.dst), table, index, site.workspace)


def _written(y: Tensor, u: Tensor) -> Tensor:
    g, index = y.srcs
    return set_rows(fill(g, 0.0), u, index)


@op(
    lower=_lower_owned,
    vjp=(_written, None),
    reference=_owned_reference,
    samples=_owned_sample,
    error_samples=lambda: [
        ErrorSample(lambda: set_rows_back(tensor([1.0]), tensor([0])), ShapeError, "2 axes"),
        ErrorSample(lambda: set_rows_back(tensor([[1.0]]), tensor([0.0])), DtypeError, "i32"),
    ],
    cost=0.0,
    family="rows",
)
def set_rows_back(g: Tensor, index: Tensor) -> Result:
    """Gradient of `set_rows` with respect to the rows written: y[…, m, :] = g[…, index[…, m], :].

    Zeros where nothing was written, or a later row over it.

    Args:
        g: (…, N, D) float. index: (…, M) i32; leading axes may be 1 or missing.
    Gradient: with respect to `g`. Source: derived from `set_rows`; ggml has none.

    >>> set_rows_back(tensor([[1.0], [2.0]]), tensor([1, 1, 5])).numpy().ravel()
    array([0., 2., 0.], dtype=float32)
    """
    need_float("set_rows_back", g)
    need_axes("set_rows_back", g, 2)
    shape = (*g.shape[:-2], index.shape[-1] if index.ndim else 0, g.shape[-1])
    _check_index("set_rows_back", shape, index)
    return Result((g, index), shape, g.dtype)
