"""Rows picked by index, and their gradient: rows added where they were picked.

An index outside the table reads NaN and writes nothing: no other memory is reached, and the
mistake shows in the first value computed from it.
"""

import math
from typing import Any

import numpy as np

from yupana.graphlib.kernels import quant_copy
from yupana.graphlib.kernels.blocks import (
    HEAD,
    LOAD,
    NATIVE,
    SIZE,
    View,
    both_kernels,
    head_words,
    padded,
)
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F64
from yupana.graphlib.kernels.pointers import (
    call_convert,
    f32_array,
    f64_array,
    i32_array,
    i64_array,
)
from yupana.graphlib.kernels.step import Step

_CHUNK_BYTES = 1 << 19  # of the gradient's table that one chunk clears and fills: half an L2 cache
_STRIPE = 64  # columns of a chunk where the table is too small to share by rows
# Placeholders of the names that a Kernel binds; see blocks.bindings.
array: Any = None

# Record: head; code, address, three outer strides and last stride of the picked rows; the same
# of the table; address and three strides of the index; sizes.
_ROWS, _TABLE, _INDEX = HEAD, HEAD + 6, HEAD + 12
_N0, _N1, _N2, _COLUMNS, _TABLE_ROWS = range(HEAD + 16, HEAD + 21)
_WORDS = HEAD + 21
_BATCH0, _BATCH1, _RANGE, _RANGES, _WIDTH, _STRIPES = range(_WORDS, _WORDS + 6)


def get_rows(dst: View, table: View, index: View) -> list[Step]:
    """`dst[b0, b1, m] = table[b0, b1, index[b0, b1, m]]`, converted to dst's dtype.

    `dst` is f32 or f64 with contiguous rows, f32 for a quantised table; leading axes that `table`
    lacks are shared.
    """
    sizes, record = _record(dst, table, index)
    if quant_copy.name_of(table.code):
        record = (quant_copy.load_address(table.code), *record[1:])
    n = math.prod(sizes[:3])
    if n * sizes[3] == 0:
        return []
    return [Step(_GET_ROWS, record, n, n * (15 + 0.1 * sizes[3]))]


def add_rows(dst: View, grad: View, index: View) -> list[Step]:
    """`dst[b0, b1, k] = sum of grad[b0, b1, m] over m with index[b0, b1, m] == k`, in order of m.

    `dst` is f32 or f64 and contiguous; over leading axes that it lacks the rows are summed.
    """
    sizes, record = _record(grad, dst, index)
    columns, rows = sizes[3:]
    batches = padded(dst.shape[:-2], 2, 1)
    # Chunks own rows of the table, or columns where there are few rows: no two write to the
    # same place, so that rows picked twice are added in order.
    per_chunk = max(1, _CHUNK_BYTES // max(1, columns * dst.itemsize))
    ranges = -(-rows // per_chunk)
    width = columns if ranges > 1 else _STRIPE
    stripes = -(-columns // width) if width else 0
    chunks = math.prod(batches) * ranges * stripes
    if chunks == 0:
        return []
    record = (*record, *batches, per_chunk, ranges, width, stripes)
    added, cleared = math.prod(sizes[:4]), math.prod(batches) * rows * columns
    ns = 20 * chunks + 0.2 * added + 0.1 * cleared + math.prod(sizes[:3]) * ranges * stripes
    kernel = _ADD_ROWS[dst.code == F64]
    return [Step(kernel, record, chunks, ns, 8 * columns)]


def _record(
    rows: View, table: View, index: View
) -> tuple[tuple[int, int, int, int, int], tuple[int, ...]]:
    """Sizes (three axes of picks, columns, rows of the table) and the record."""
    n0, n1, n2, columns = padded(rows.shape, 4, 1)
    sizes = (n0, n1, n2, columns, table.shape[-2])
    words = [*head_words(wide=F64 in (rows.code, table.code))]
    for view in (rows, table):
        words += [view.code, view.address, *padded(view.strides, 4)]
    words += [index.address, *padded(index.strides, 3)]
    return sizes, (*words, *sizes)


def get_rows_kernel(record, begin, end, scratch):
    """Chunks are rows of the result."""
    r = i64_array(record, _WORDS)
    n = r[_COLUMNS]
    for chunk in range(begin, end):
        i2 = chunk % r[_N2]
        i1 = chunk // r[_N2] % r[_N1]
        i0 = chunk // r[_N2] // r[_N1]
        at = r[_INDEX] + i0 * r[_INDEX + 1] + i1 * r[_INDEX + 2] + i2 * r[_INDEX + 3]
        k = i32_array(at, 1)[0]
        out = r[_ROWS + 1] + i0 * r[_ROWS + 2] + i1 * r[_ROWS + 3] + i2 * r[_ROWS + 4]
        if 0 <= k < r[_TABLE_ROWS]:
            row = r[_TABLE + 1] + i0 * r[_TABLE + 2] + i1 * r[_TABLE + 3] + k * r[_TABLE + 4]
            call_convert(r[LOAD], row, r[_TABLE + 5], r[_TABLE], n, out)
        elif r[NATIVE] == F64:
            f64_array(out, n)[:] = np.nan
        else:
            f32_array(out, n)[:] = np.float32(np.nan)


def add_rows_kernel(record, begin, end, scratch):
    """Chunks are ranges of the table's rows, or stripes of its columns."""
    r = i64_array(record, _STRIPES + 1)
    native = r[_ROWS] == r[NATIVE] and r[_ROWS + 5] == r[SIZE]
    # Axes that belong to the table's batch are fixed in a chunk, the others are gone through.
    n0, n1 = r[_N0] // r[_BATCH0], r[_N1] // r[_BATCH1]
    for chunk in range(begin, end):
        left = chunk % r[_STRIPES] * r[_WIDTH]
        first = chunk // r[_STRIPES] % r[_RANGES] * r[_RANGE]
        batch = chunk // r[_STRIPES] // r[_RANGES]
        b0, b1 = batch // r[_BATCH1], batch % r[_BATCH1]
        n = min(r[_WIDTH], r[_COLUMNS] - left)
        last = min(first + r[_RANGE], r[_TABLE_ROWS])
        table = r[_TABLE + 1] + b0 * r[_TABLE + 2] + b1 * r[_TABLE + 3] + left * r[SIZE]
        for k in range(first, last):
            array(table + k * r[_TABLE + 4], n)[:] = 0
        for i0 in range(b0, b0 + n0):
            for i1 in range(b1, b1 + n1):
                index = r[_INDEX] + i0 * r[_INDEX + 1] + i1 * r[_INDEX + 2]
                rows = r[_ROWS + 1] + i0 * r[_ROWS + 2] + i1 * r[_ROWS + 3] + left * r[_ROWS + 5]
                for i2 in range(r[_N2]):
                    k = i32_array(index + i2 * r[_INDEX + 3], 1)[0]
                    if k < first or k >= last:
                        continue
                    row = rows + i2 * r[_ROWS + 4]
                    if not native:
                        call_convert(r[LOAD], row, r[_ROWS + 5], r[_ROWS], n, scratch)
                        row = scratch
                    total, added = array(table + k * r[_TABLE + 4], n), array(row, n)
                    for i in range(n):
                        total[i] += added[i]


_GET_ROWS = Kernel(get_rows_kernel)
_ADD_ROWS = both_kernels(add_rows_kernel)
