"""The kernel of matrix multiplication for few rows of A: B is read once, where it lies.

Packing B would cost more than the product, so lanes run along k, and the lanes of a sum are
added at the end.
"""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

from yupana.graphlib.kernels.columns import COLUMNS, ROWS, Ahead, fetch, in_groups
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_plan import CHUNK_FLOPS, Gemm, round_up, rows_of
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.vector import (
    DTYPES,
    FETCHED,
    ITEMSIZE,
    LANES,
    const,
    load,
    load_f32,
    loop,
    mask_below,
    multiply_add,
    vector,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.kernels.word_numbers import word_numbers

_STREAMS = 4  # sums of one column that do not wait for each other


class DotsRecord(NamedTuple):
    """Record of `dots`; chunk = ((b0, b1), block of columns)."""

    a: int
    a_b0: int
    a_b1: int
    a_row: int
    b: int
    b_b0: int
    b_b1: int
    b_col: int
    c: int
    c_b0: int
    c_b1: int
    c_row: int
    d: int
    d_b0: int
    d_b1: int
    d_row: int
    batch1: int
    group0: int
    group1: int
    rows: int
    cols: int
    inner: int
    cols_block: int


def dots_record(gemm: Gemm) -> tuple[DotsRecord, int]:
    """The record of a product and how many chunks it has."""
    column = 2.0 * gemm.rows * gemm.inner
    cols_block = min(round_up(CHUNK_FLOPS / 16 / max(column, 1.0), 16), gemm.cols)
    record = DotsRecord(
        *rows_of(gemm.a),
        *rows_of(gemm.b),
        *rows_of(gemm.c),
        *rows_of(gemm.d),
        gemm.batch[1],
        *gemm.shared,
        gemm.rows,
        gemm.cols,
        gemm.inner,
        cols_block,
    )
    return record, gemm.batches * -(-gemm.cols // cols_block)


def _dots(rows: int, dtype: str, b: Any, args: list[Any]) -> None:
    """Four columns by `rows` rows of dot products; see `_dotsR_T`."""
    row_bytes = b.mul(args[8], const(ITEMSIZE[dtype]))
    in_groups(b, rows, 1, row_bytes, args, partial(_dot_sums, b, dtype, args[8]))


def _dot_sums(
    b: Any, dtype: str, count: Any, a_rows: list[Any], columns: list[Any], ahead: Ahead
) -> list[list[Any]]:
    """The products of each column with each row, summed over k but for the lanes of a vector."""
    if len(a_rows) == 1 and dtype == "f32":
        return [[_alone(b, count, a_rows[0], p)] for p in columns]
    kind, size = vector(), ITEMSIZE[dtype]
    together = max(FETCHED // (LANES * size), 1)  # vectors of a column that memory gives at once
    sums = [[Cell(Lanes(b, zeros(kind))) for _ in a_rows] for _ in columns]

    def add(k: Any, mask: Any = None) -> None:
        def kept(value: Any) -> Any:
            return value if mask is None else b.select(mask, value, zeros(kind))

        left = [kept(load(b, kind, b.add(p, b.mul(k, const(4))), 4)) for p in a_rows]
        for p, column in zip(columns, sums, strict=True):
            value = kept(load_f32(b, dtype, b.add(p, b.mul(k, const(size))), LANES))
            for u, total in zip(left, column, strict=True):
                total.set(Lanes(b, multiply_add(b, u, value, total.get().value)))

    def add_together(k: Any) -> None:
        fetch(b, columns, ahead, b.mul(k, const(size)), step * size)
        for u in range(together):
            add(b.add(k, const(u * LANES)))

    step = LANES * together
    loop(b, const(0), count, step, add_together)
    if together > 1:
        loop(b, b.sub(count, b.srem(count, const(step))), count, LANES, add)
    rest = b.srem(count, const(LANES))
    with b.if_then(b.icmp_signed("!=", rest, const(0))):
        # The last LANES elements again, without those already counted.
        last = b.sub(count, const(LANES))
        add(last, b.not_(mask_below(b, b.sub(const(LANES), rest))))
    return [[total.get().value for total in column] for column in sums]


def _alone(b: Any, count: Any, row: Any, column: Any) -> Any:
    """The products of one column of f32 and one row likewise.

    Columns one after the other are read as they lie in memory, which then gives more.
    """
    kind = vector()
    totals = [Cell(Lanes(b, zeros(kind))) for _ in range(_STREAMS)]

    def add(k: Any, total: Cell, mask: Any = None) -> None:
        x, w = (load(b, kind, b.add(p, b.mul(k, const(4))), 4) for p in (row, column))
        if mask is not None:
            x, w = (b.select(mask, value, zeros(kind)) for value in (x, w))
        total.set(Lanes(b, multiply_add(b, x, w, total.get().value)))

    def add_all(k: Any) -> None:
        for u, total in enumerate(totals):
            add(b.add(k, const(u * LANES)), total)

    step = LANES * _STREAMS
    loop(b, const(0), count, step, add_all)
    loop(b, b.sub(count, b.srem(count, const(step))), count, LANES, lambda k: add(k, totals[0]))
    rest = b.srem(count, const(LANES))
    with b.if_then(b.icmp_signed("!=", rest, const(0))):
        # The last LANES elements again, without those already counted.
        add(
            b.sub(count, const(LANES)),
            totals[1],
            b.not_(mask_below(b, b.sub(const(LANES), rest))),
        )
    values = [total.get().value for total in totals]
    while len(values) > 1:
        values = [b.fadd(x, y) for x, y in zip(values[::2], values[1::2], strict=True)]
    return values[0]


# _dotsR_T(a, a_row, x, x_row, c, c_row, d, d_row, count, columns): C[i, j] = sum over
# k < count of A[i, k] * X[j, k] (+ D[i, j]) for i < R and j < columns, where k is contiguous, A is
# f32 and X of dtype T; count >= LANES.
_dots_of = {
    (rows, dtype): void_intrinsic(f"gemm_dots{rows}_{dtype}", 10, partial(_dots, rows, dtype))
    for rows, dtype in product((1, ROWS), DTYPES)
}

_D = word_numbers(DotsRecord)  # word numbers
# What a Kernel binds: the dot products of one row and of ROWS.
dots_one: Any = None
dots_four: Any = None


def dots(record, begin, end, scratch):
    """Chunks are ((b0, b1), block of columns): B is read once, where it lies."""
    r = i64_array(record, _D.n_words)
    blocks = (r[_D.cols] + r[_D.cols_block] - 1) // r[_D.cols_block]
    a_row, b_col, c_row, d_row = r[_D.a_row], r[_D.b_col], r[_D.c_row], r[_D.d_row]
    for chunk in range(begin, end):
        batch = chunk // blocks
        b0, b1 = batch // r[_D.batch1], batch % r[_D.batch1]
        g0, g1 = b0 // r[_D.group0], b1 // r[_D.group1]
        a = r[_D.a] + b0 * r[_D.a_b0] + b1 * r[_D.a_b1]
        b = r[_D.b] + g0 * r[_D.b_b0] + g1 * r[_D.b_b1]
        c = r[_D.c] + b0 * r[_D.c_b0] + b1 * r[_D.c_b1]
        d = r[_D.d]
        if d != 0:
            d += b0 * r[_D.d_b0] + b1 * r[_D.d_b1]
        first = chunk % blocks * r[_D.cols_block]
        last = min(first + r[_D.cols_block], r[_D.cols])
        at_once = COLUMNS if r[_D.rows] > 1 else last - first  # rows meet what the cache holds
        for j in range(first, last, at_once):
            columns = min(at_once, last - j)
            i = 0
            while i < r[_D.rows]:
                u, w = a + i * a_row, c + i * c_row + j * 4
                v = b + j * b_col
                plus = d + i * d_row + j * 4 if d != 0 else 0
                if r[_D.rows] - i >= ROWS:
                    dots_four(u, a_row, v, b_col, w, c_row, plus, d_row, r[_D.inner], columns)
                    i += ROWS
                else:
                    dots_one(u, a_row, v, b_col, w, c_row, plus, d_row, r[_D.inner], columns)
                    i += 1


DOTS = {
    dtype: Kernel(dots, dtype, dots_one=_dots_of[1, dtype], dots_four=_dots_of[ROWS, dtype])
    for dtype in DTYPES
}
