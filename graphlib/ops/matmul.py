"""Matrix products. Views of any strides go in; nothing is transposed in memory."""

from dataclasses import replace

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import dtype_of, f32
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import (
    quant_copy,
    quant_levels,
    quant_panels,
    quant_products,
    quant_slices,
)
from yupana.graphlib.kernels.blocks import contiguous_strides, padded
from yupana.graphlib.kernels.gemm import Gemm, Matrix, is_fast, lower, workspace_bytes
from yupana.graphlib.kernels.pairs import HAS_BF16
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Cost, Draw, ErrorSample, Operand, Result, Site, call, op
from yupana.graphlib.ops._rules import (
    need_axes,
    need_float,
    need_one_precision,
    need_real,
    view,
    wide_dtype,
)
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.ops.reduction import repeat_back
from yupana.graphlib.ops.views import reshape, transpose
from yupana.graphlib.tensor import Tensor

_ROUNDED = [dtype_of(name) for name in quant_products.ROUNDED]


def _matrix(x: Operand, row_axis: int = -2) -> Matrix:
    """The last two axes as rows and columns (swapped for `row_axis` -1), those before as batch."""
    b0, b1, row, column = padded(x.strides, 4)
    if row_axis == -1:
        row, column = column, row
    return Matrix(x.address, x.dtype.name, (b0, b1, row, column))


def _batch(shape: tuple[int, ...]) -> tuple[int, int]:
    b0, b1, _, _ = padded(shape, 4, 1)
    return b0, b1


def _group(large: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, int]:
    """How many consecutive batches of the larger operand share one of the smaller."""
    (a0, a1), (b0, b1) = _batch(large), _batch(small)
    return max(a0 // max(b0, 1), 1), max(a1 // max(b1, 1), 1)


def _steps(site: Site, gemm: Gemm) -> list[Step]:
    is_exact = HAS_BF16 and gemm.a.dtype == gemm.b.dtype == "bf16"  # and fast
    gemm = replace(gemm, pairs=is_exact or site.matmul == "bf16")
    return lower(gemm, site.workspace(workspace_bytes(gemm)))


def _flatten(x: Operand) -> Operand:
    """Leading axes merged into the rows where memory allows: one product, not one per batch."""
    while len(x.shape) > 2 and x.strides[-3] == x.strides[-2] * x.shape[-2]:
        shape = (*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])
        x = Operand(x.address, shape, (*x.strides[:-3], *x.strides[-2:]), x.dtype)
    return x


def _lower_mul_mat(site: Site) -> list[Step]:
    w, x, dst = site.srcs[0], site.srcs[1], site.dst
    residual = site.srcs[2] if len(site.srcs) > 2 else None
    if dst.size == 0:
        return []
    if _batch(w.shape) == (1, 1):
        operands = [_flatten(o) for o in (x, dst, *([residual] if residual else []))]
        if len({o.shape[:-1] for o in operands}) == 1:
            x, dst = operands[:2]
            residual = operands[2] if residual else None
    gemm = Gemm(
        batch=_batch(dst.shape),
        rows=dst.shape[-2],
        cols=dst.shape[-1],
        inner=w.shape[-1],
        group=_group(x.shape, w.shape),
        a=_matrix(x),
        b=_matrix(w),
        c=_matrix(dst),
        d=_matrix(residual) if residual else None,
    )
    return _quantized_steps(site, gemm, w, x) if w.dtype.is_quantized else _steps(site, gemm)


def _quantized_steps(site: Site, gemm: Gemm, w: Operand, x: Operand) -> list[Step]:
    """`w` is quantised, and `x` may be so with eight bits."""
    expanded: list[Step] = []
    if x.dtype.is_quantized:
        if quant_panels.suits(gemm):
            return quant_panels.lower(gemm, site.workspace(quant_panels.workspace_bytes(gemm)))
        if quant_levels.suits(gemm):
            return quant_levels.lower(gemm, site.workspace(quant_levels.workspace_bytes(gemm)))
        strides = contiguous_strides(x.shape, f32.itemsize)
        flat = Operand(site.workspace(f32.itemsize * x.size), x.shape, strides, f32)
        expanded = quant_copy.copy_steps(view(flat), view(x))
        gemm = replace(gemm, a=_matrix(flat))
    if is_fast(gemm):
        return expanded + _steps(site, gemm)
    return expanded + quant_slices.lower(gemm, view(w), False, site.workspace)


def _reference_mul_mat(w: Array, x: Array) -> Array:
    for axis in range(w.ndim - 2):
        at = x.ndim - w.ndim + axis
        w = np.repeat(w, x.shape[at] // w.shape[axis], axis)
    return x @ np.swapaxes(w, -1, -2)


def _grouped_sum(full: Tensor, w: Tensor) -> Tensor:
    """Sum the gradients of the consecutive batches that shared one matrix of `w`."""
    rows, columns = full.shape[-2:]
    b0, b1 = _batch(w.shape)
    f0, f1 = _batch(full.shape)
    if f1 != b1:
        full = repeat_back(
            reshape(full, (f0 * b1, f1 // b1, rows, columns)), (f0 * b1, 1, rows, columns)
        )
    if f0 != b0:
        full = repeat_back(
            reshape(full, (b0, f0 // b0, b1 * rows, columns)), (b0, 1, b1 * rows, columns)
        )
    return full if full.shape == w.shape else reshape(full, w.shape)


def _rows_of(x: Tensor) -> Tensor:
    """All leading axes as one: a weight shared by them gets its gradient in one product."""
    if x.ndim == 2:
        return x
    return reshape(contiguous(x), (x.size // max(x.shape[-1], 1) if x.size else 0, x.shape[-1]))


def _grad_w(y: Tensor, g: Tensor) -> Tensor:
    w, x = y.srcs
    if _batch(w.shape) == (1, 1):
        grad = out_prod(_rows_of(x), _rows_of(g))
        return grad if grad.shape == w.shape else reshape(grad, w.shape)
    return _grouped_sum(out_prod(x, g), w)


def _grad_x(y: Tensor, g: Tensor) -> Tensor:
    w = y.srcs[0]
    if w.dtype.is_quantized:  # its rows cannot be looked at as columns
        return out_prod(w, transpose(g))
    return mul_mat(transpose(w), g)


def _pairs(d: Draw, inner_axis: int) -> Call:
    """Two float tensors; batch sizes of the first divide those of the second."""
    n, m, k = d.integer(1, 20), d.integer(1, 20), d.choice([1, 2, 5, 16, 33])
    axes = d.integer(0, 2)
    small = tuple(d.integer(1, 2) for _ in range(axes))
    large = tuple(b * d.integer(1, 3) for b in small)
    drop = d.integer(0, axes) if all(b == 1 for b in small) else 0
    blocks = d.choice([0, 0, 0, 32, 256, 512])  # length of the first's rows, if quantised
    if blocks:
        n, k = (n, blocks) if inner_axis == -1 else (blocks, k)
    first = (*small[drop:], *((n, k) if inner_axis == -1 else (k, n)))
    second = (*large, *((m, k) if inner_axis == -1 else (k, m)))
    if not blocks:
        return call(d.floats(first), d.floats(second))
    both = inner_axis == -1 and d.choice([False, False, True])
    kind = d.choice(["Q8_0", "Q8_K"]) if k % 256 == 0 else "Q8_0"
    return call(d.quantized(first), d.quantized(second, kind) if both else d.floats(second))


def _check_pair(name: str, a: Tensor, b: Tensor, axis: int) -> None:
    need_real(name, a)
    need_axes(name, a, 2)
    need_axes(name, b, 2)
    if not a.dtype.is_quantized:
        need_one_precision(name, a, b)
    if a.shape[axis] != b.shape[axis]:
        other = (
            f"Did you mean {name}(w.T, x)?"
            if a.shape[-2] == b.shape[-1]
            else (f"Both contract their axis {axis}.")
        )
        raise ShapeError(
            f"{name}: inner sizes differ: got {a.shape} and {b.shape}, "
            f"want shape[{axis}] the same. {other}"
        )
    fits = all(n % k == 0 for k, n in zip(_batch(a.shape), _batch(b.shape), strict=True) if k)
    if not fits or b.ndim < a.ndim or (0 in _batch(a.shape)) != (0 in _batch(b.shape)):
        raise ShapeError(
            f"{name}: batches do not fit: got {a.shape} and {b.shape}, want the second's leading "
            "sizes to be multiples of the first's"
        )


@op(
    lower=_lower_mul_mat,
    vjp=(_grad_w, _grad_x),
    reference=_reference_mul_mat,
    samples=lambda d: _pairs(d, -1),
    error_samples=lambda: [
        ErrorSample(
            lambda: mul_mat(tensor(np.ones((64, 32))), tensor(np.ones((4, 48)))),
            ShapeError,
            "(64, 32) and (4, 48)",
        ),
        ErrorSample(
            lambda: mul_mat(tensor(np.ones((2, 3, 4))), tensor(np.ones((3, 5, 4)))),
            ShapeError,
            "multiples",
        ),
        ErrorSample(lambda: mul_mat(tensor([[1]]), tensor([[1.0]])), DtypeError, "float"),
    ],
    cost=lambda y: Cost.of(y, 2.0 * y.size * y.srcs[0].shape[-1]),
    family="matmul",
    tolerance=2.0,  # float32 sums of up to 512 terms, one after the other
)
def mul_mat(w: Tensor, x: Tensor) -> Result:
    """Multiply rows by a matrix, ggml's product: both last axes are contracted.

        y[..., m, n] = sum_k x[..., m, k] · w[..., n, k]

    Args:
        w: (…, N, K) float or quantised; usually a weight.
        x: (…, M, K) float; its leading sizes are multiples of those of `w`. Consecutive batches
            of `x` share one of `w`, as grouped-query heads share keys. Beside a quantised `w`
            it may be Q8_0, Q8_1 or Q8_K (`cast(x, "Q8_0")`): levels are then multiplied as
            integers, which takes half the time or less. Beside Q4_1 and Q5_1, Q8_1 brings the
            sums that it stores in float16, as in ggml.
    Returns:
        (…, M, N) f32, or f64 when both are. `a @ b` is the mathematical product. A quantised `w`
        stands for exactly the numbers in its blocks; ggml always rounds `x` to eight bits, too.
    Raises:
        ShapeError: inner sizes or batches do not fit. DtypeError: not floats.
    Gradient: with respect to both; grouped batches are summed. Source: ggml_mul_mat.

    >>> mul_mat(tensor([[1.0, 2.0]]), tensor([[3.0, 4.0], [5.0, 6.0]])).numpy()
    array([[11.],
           [17.]], dtype=float32)
    """
    if not (w.dtype.is_quantized and x.dtype in _ROUNDED):
        need_float("mul_mat", x)
    _check_pair("mul_mat", w, x, -1)
    return Result((w, x), (*x.shape[:-1], w.shape[-2]), wide_dtype(x))


def _lower_out_prod(site: Site) -> list[Step]:
    a, b, dst = *site.srcs, site.dst
    if dst.size == 0:
        return []
    gemm = Gemm(
        batch=_batch(dst.shape),
        rows=dst.shape[-2],
        cols=dst.shape[-1],
        inner=a.shape[-2],
        group=_group(b.shape, a.shape),
        a=_matrix(b, row_axis=-1),
        b=_matrix(a, row_axis=-1),
        c=_matrix(dst),
        d=None,
    )
    if a.dtype.is_quantized:
        gemm = replace(gemm, pairs=site.matmul == "bf16")
        return quant_slices.lower(gemm, view(a), True, site.workspace)
    return _steps(site, gemm)


def _reference_out_prod(a: Array, b: Array) -> Array:
    return _reference_mul_mat(np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2))


def _out_prod_grad_a(y: Tensor, g: Tensor) -> Tensor:
    a, b = y.srcs
    full = mul_mat(transpose(g), b)  # (…, K, N): per batch of b
    return _grouped_sum(full, a) if full.shape != a.shape else full


@op(
    lower=_lower_out_prod,
    vjp=(_out_prod_grad_a, lambda y, g: transpose(mul_mat(y.srcs[0], g))),
    reference=_reference_out_prod,
    samples=lambda d: _pairs(d, -2),
    error_samples=lambda: [
        ErrorSample(
            lambda: out_prod(tensor(np.ones((3, 2))), tensor(np.ones((4, 2)))),
            ShapeError,
            "(3, 2) and (4, 2)",
        )
    ],
    cost=lambda y: Cost.of(y, 2.0 * y.size * y.srcs[0].shape[-2]),
    family="matmul",
)
def out_prod(a: Tensor, b: Tensor) -> Result:
    """Sum of outer products of rows: the gradient of a weight.

        y[..., m, n] = sum_k b[..., k, m] · a[..., k, n]

    Args:
        a: (…, K, N) float or quantised.
        b: (…, K, M) float; its leading sizes are multiples of those of `a`, and consecutive
            batches of `b` share one of `a`.
    Returns:
        (…, M, N) f32, or f64 when both are.
    Gradient: with respect to both (ggml has none). Source: ggml_out_prod.

    >>> out_prod(tensor([[1.0, 2.0]]), tensor([[3.0, 4.0]])).numpy()
    array([[3., 6.],
           [4., 8.]], dtype=float32)
    """
    need_float("out_prod", b)
    _check_pair("out_prod", a, b, -2)
    return Result((a, b), (*b.shape[:-2], b.shape[-1], a.shape[-1]), wide_dtype(b))
