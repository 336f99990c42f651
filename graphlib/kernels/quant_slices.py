"""Products with a quantised matrix that other kernels take part by part, expanded in workspace.

For the transposed matrix, as in the gradient of a product with a frozen weight, and for results
in float64. The part is small enough to stay in a cache, and the whole is never expanded.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from yupana.graphlib.kernels import gemm as products
from yupana.graphlib.kernels.blocks import View, contiguous_strides, padded
from yupana.graphlib.kernels.convert import F32, F64
from yupana.graphlib.kernels.gemm_plan import K_BLOCK, Gemm, Matrix
from yupana.graphlib.kernels.quant_copy import copy_steps
from yupana.graphlib.kernels.step import Step

_PART_BYTES = 1 << 20  # of float32 at a time, roughly: so much is packed as a whole


def lower(gemm: Gemm, rows: View, inner: bool, workspace: Callable[[int], int]) -> list[Step]:
    """The steps of `gemm`, of which B is the quantised `rows`, (…, N, K).

    Args:
        inner: rows are what is summed over (B is transposed); otherwise they are columns of C.
        workspace: gives the address of so many bytes.
    """
    total, n = rows.shape[-2:]
    size = 8 if gemm.c.dtype == "f64" else 4
    row_bytes = size * n * math.prod(rows.shape[:-2])
    each = max(_PART_BYTES // max(row_bytes, 1) // K_BLOCK, 1) * K_BLOCK
    each = min(each, max(total, 1))
    place = workspace(each * row_bytes)
    copies, parts = [], []
    for first in range(0, max(total, 1), each):
        count = min(each, total - first)
        flat = _flat(rows, count, place, size)
        start = rows.address + first * rows.strides[-2]
        source = View(start, flat.shape, rows.strides, rows.code, rows.itemsize)
        copies.append(copy_steps(flat, source))
        parts.append((_inner_part if inner else _column_part)(gemm, first, count, flat))
    shared = workspace(max(products.workspace_bytes(part) for part in parts))
    steps: list[Step] = []
    for copied, part in zip(copies, parts, strict=True):
        steps += copied + products.lower(part, shared)
    return steps


def _flat(rows: View, count: int, place: int, size: int) -> View:
    shape = (*rows.shape[:-2], count, rows.shape[-1])
    return View(place, shape, contiguous_strides(shape, size), F64 if size == 8 else F32, size)


def _matrix(flat: View, transposed: bool) -> Matrix:
    b0, b1, row, column = padded(flat.strides, 4)
    strides = (b0, b1, column, row) if transposed else (b0, b1, row, column)
    return Matrix(flat.address, "f64" if flat.code == F64 else "f32", strides)


def _moved(matrix: Matrix, axis: int, count: int) -> Matrix:
    return replace(matrix, address=matrix.address + count * matrix.strides[axis])


def _inner_part(gemm: Gemm, first: int, count: int, flat: View) -> Gemm:
    """Add what rows [first, first + count) contribute."""
    return replace(
        gemm,
        inner=count,
        a=_moved(gemm.a, 3, first),
        b=_matrix(flat, transposed=True),
        d=gemm.c if first else gemm.d,
    )


def _column_part(gemm: Gemm, first: int, count: int, flat: View) -> Gemm:
    """Columns [first, first + count) of C."""
    return replace(
        gemm,
        cols=count,
        b=_matrix(flat, transposed=False),
        c=_moved(gemm.c, 3, first),
        d=_moved(gemm.d, 3, first) if gemm.d else None,
    )
