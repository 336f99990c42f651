"""Mixtures of experts: each row is multiplied by the matrices that an index picks for it."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import experts
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Cost, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import (
    need_float,
    need_index,
    need_one_precision,
    need_real,
    unbroadcast,
    view,
    wide_dtype,
)
from yupana.graphlib.ops.arithmetic import add
from yupana.graphlib.ops.copies import cast
from yupana.graphlib.ops.rows import get_rows
from yupana.graphlib.ops.views import transpose
from yupana.graphlib.tensor import Tensor


def _check_rows(name: str, x: Tensor, ids: Tensor) -> None:
    """Raise unless `x` is (T, U, K) or (T, 1, K) for ids of (T, U)."""
    need_float(name, x)
    need_index(name, ids)
    fits = ids.ndim == 2 and x.ndim == 3 and x.shape[0] == ids.shape[0]
    if not fits or x.shape[1] not in (1, ids.shape[1]):
        raise ShapeError(
            f"{name}: rows do not fit: got {x.shape} and ids {ids.shape}, want (T, U, K) or "
            "(T, 1, K) and (T, U)"
        )


def _mul_reference(w: Array, x: Array, ids: Array) -> Array:
    y = np.full((*ids.shape, w.shape[1]), np.nan)
    x = np.broadcast_to(x, (*ids.shape, x.shape[-1]))
    for at in np.ndindex(*ids.shape):
        if 0 <= ids[at] < w.shape[0]:
            y[at] = w[ids[at]] @ x[at]
    return y


def _out_reference(x: Array, g: Array, ids: Array, n_experts: int) -> Array:
    total = np.zeros((n_experts, g.shape[-1], x.shape[-1]))
    x = np.broadcast_to(x, (*ids.shape, x.shape[-1]))
    for at in np.ndindex(*ids.shape):
        if 0 <= ids[at] < n_experts:
            total[ids[at]] += np.outer(g[at], x[at])
    return total


def _sizes(d: Draw) -> tuple[int, Tensor, int, int]:
    """Number of experts, ids, and lengths of the rows that go in and come out."""
    n_experts = d.integer(1, 5)
    shape = (d.choice([1, 2, 3, 7, 40]), d.integer(1, 3))
    n, k = d.choice([1, 3, 16, 33]), d.choice([1, 2, 16, 40, 300])
    return n_experts, d.integers(shape, 0, n_experts - 1), n, k


def _mul_sample(d: Draw) -> Call:
    n_experts, ids, n, k = _sizes(d)
    tokens, used = ids.shape
    x = d.floats((tokens, d.choice([used, 1]), k))
    return call(d.floats((n_experts, n, k)), x, ids)


def _out_sample(d: Draw) -> Call:
    n_experts, ids, n, k = _sizes(d)
    tokens, used = ids.shape
    x = d.floats((tokens, d.choice([used, 1]), k))
    return call(x, d.floats((tokens, used, n)), ids, n_experts + d.integer(0, 1))


def _mul_errors() -> list[ErrorSample]:
    w, x, ids = tensor(np.ones((2, 3, 4))), tensor(np.ones((5, 1, 4))), tensor([[0]] * 5)
    wide = tensor(np.ones((5, 1, 4)), "f64")
    return [
        ErrorSample(lambda: mul_mat_id(w, x, cast(ids, "f32")), DtypeError, "i32"),
        ErrorSample(lambda: mul_mat_id(w, wide, ids), DtypeError, "f64 for both"),
        ErrorSample(lambda: mul_mat_id(w[0], x, ids), ShapeError, "(3, 4)"),
        ErrorSample(lambda: mul_mat_id(w, x[..., :3], ids), ShapeError, "(5, 1, 3)"),
        ErrorSample(lambda: mul_mat_id(w, x, ids[:4]), ShapeError, "(4, 1)"),
    ]


def _lower_mul(site: Site) -> list[Step]:
    w, x, ids = (view(operand) for operand in site.srcs)
    name = site.srcs[0].dtype.name
    return experts.mul_mat_id(view(site.dst), w, name, x, ids, site.workspace)


def _matrices_grad(y: Tensor, g: Tensor) -> Tensor:
    w, x, ids = y.srcs
    return out_prod_id(x, g, ids, w.shape[0])


def _rows_grad(y: Tensor, g: Tensor) -> Tensor:
    w, x, ids = y.srcs
    w = cast(w, "f32") if w.dtype.is_quantized else w
    return unbroadcast(mul_mat_id(transpose(w), g, ids), x)


@op(
    lower=_lower_mul,
    vjp=(_matrices_grad, _rows_grad, None),
    reference=_mul_reference,
    samples=_mul_sample,
    error_samples=_mul_errors,
    cost=lambda y: Cost.of(y, 2.0 * y.size * y.srcs[0].shape[-1]),
    family="matmul",
)
def mul_mat_id(w: Tensor, x: Tensor, ids: Tensor) -> Result:
    """Multiply each row by the matrices of the experts it picks.

        y[t, u, n] = sum_k w[ids[t, u], n, k] · x[t, u, k]

    Args:
        w: (E, N, K) float or quantised. One matrix per expert.
        x: (T, U, K) float, or (T, 1, K) where the experts of a token share its row.
        ids: (T, U) i32. The experts of each token; a number outside [0, E) gives a row of NaN.
    Returns:
        (T, U, N) f32, or f64 when both are.
    Raises:
        ShapeError: shapes do not fit. DtypeError: not floats, f64 for one only, ids not i32.
    Gradient: with respect to `w` (`out_prod_id`) and `x` (ggml has none).
    Source: ggml_mul_mat_id.

    >>> w = tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> x = tensor([[[5.0, 7.0]], [[6.0, 8.0]]])
    >>> mul_mat_id(w, x, tensor([[0], [1]])).numpy().ravel()
    array([5., 8.], dtype=float32)
    """
    need_real("mul_mat_id", w)
    _check_rows("mul_mat_id", x, ids)
    need_one_precision("mul_mat_id", w, x)
    if w.ndim != 3 or w.shape[-1] != x.shape[-1]:
        raise ShapeError(
            f"mul_mat_id: matrices do not fit: got {w.shape} for rows {x.shape}, want (E, N, "
            f"{x.shape[-1]})"
        )
    return Result((w, x, ids), (*ids.shape, w.shape[1]), wide_dtype(x))


def _lower_out(site: Site) -> list[Step]:
    x, g, ids = (view(operand) for operand in site.srcs)
    return experts.out_prod_id(view(site.dst), x, g, ids, site.workspace)


def _first_grad(y: Tensor, u: Tensor) -> Tensor:
    x, g, ids = y.srcs
    return unbroadcast(mul_mat_id(transpose(u), g, ids), x)


def _out_errors() -> list[ErrorSample]:
    x, g, ids = tensor(np.ones((5, 1, 4))), tensor(np.ones((5, 2, 3))), tensor([[0, 1]] * 5)
    return [
        ErrorSample(lambda: out_prod_id(x, g[:, :1], ids, 2), ShapeError, "(5, 1, 3)"),
        ErrorSample(lambda: out_prod_id(x[0], g, ids, 2), ShapeError, "(1, 4)"),
        ErrorSample(lambda: out_prod_id(x, g, ids, -1), ShapeError, "n_experts=-1"),
        ErrorSample(lambda: out_prod_id(x, cast(g, "f64"), ids, 2), DtypeError, "f64 for both"),
    ]


@op(
    lower=_lower_out,
    vjp=(_first_grad, lambda y, u: mul_mat_id(u, y.srcs[0], y.srcs[2]), None),
    reference=_out_reference,
    samples=_out_sample,
    error_samples=_out_errors,
    cost=lambda y: Cost.of(y, 2.0 * y.srcs[1].size * y.shape[-1]),
    family="matmul",
)
def out_prod_id(x: Tensor, g: Tensor, ids: Tensor, n_experts: int) -> Result:
    """Sum of outer products of the rows of each expert: the gradient of its matrix.

        y[e, n, k] = sum of g[t, u, n] · x[t, u, k] over the (t, u) with ids[t, u] = e

    Args:
        x: (T, U, K) or (T, 1, K) float. g: (T, U, N) float.
        ids: (T, U) i32; numbers outside [0, n_experts) are left out.
    Returns:
        (n_experts, N, K) f32, or f64 when both are.
    Raises:
        ShapeError: shapes do not fit. DtypeError: not floats, f64 for one only, ids not i32.
    Gradient: with respect to `x` and `g`. Source: derived from `mul_mat_id`; ggml has none.

    >>> x, g = tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), tensor([[[1.0]], [[10.0]]])
    >>> out_prod_id(x, g, tensor([[1], [1]]), 2).numpy()[:, 0]
    array([[ 0.,  0.],
           [31., 42.]], dtype=float32)
    """
    need_float("out_prod_id", g)
    _check_rows("out_prod_id", x, ids)
    if g.shape[:-1] != ids.shape or g.ndim != 3:
        raise ShapeError(f"out_prod_id: got g {g.shape} and ids {ids.shape}, want (T, U, N)")
    if n_experts < 0:
        raise ShapeError(f"out_prod_id: got n_experts={n_experts}, want a number of matrices")
    need_one_precision("out_prod_id", x, g)
    shape = (int(n_experts), g.shape[-1], x.shape[-1])
    return Result((x, g, ids), shape, wide_dtype(g), {"n_experts": shape[0]})


def add_id(x: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """Add to each row the bias of the expert it picks: y[t, u] = x[t, u] + bias[ids[t, u]].

    Args:
        x: (T, U, N) float. bias: (E, N) float. ids: (T, U) i32.
    Gradient: with respect to `x` and `bias` (ggml has none). Source: ggml_add_id.

    >>> add_id(tensor([[[1.0]], [[2.0]]]), tensor([[10.0], [20.0]]), tensor([[1], [0]])).numpy()
    array([[[21.]],
    <BLANKLINE>
           [[12.]]], dtype=float32)
    """
    if ids.shape != x.shape[:-1] or bias.ndim != 2 or bias.shape[-1:] != x.shape[-1:]:
        raise ShapeError(
            f"add_id: got {x.shape}, {bias.shape} and ids {ids.shape}, want (T, U, N), (E, N) and "
            "(T, U)"
        )
    return add(x, get_rows(bias, ids))
