"""The kernel of matrix multiplication for few rows of A: B is read once, where it lies.

Packing B would cost more than the product, so lanes run along k, and the lanes of a sum are
added at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_plan import CHUNK_FLOPS, Gemm, round_up, rows_of
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.vector import (
    FETCHED,
    ITEMSIZE,
    LANES,
    REGISTERS,
    const,
    load,
    load_f32,
    loop,
    mask_below,
    masked_load,
    masked_store,
    multiply_add,
    prefetch,
    shuffle,
    store,
    vector,
    void_intrinsic,
    zeros,
)

ROWS = COLUMNS = 4  # rows of A and columns that a call takes
_STREAMS = 4  # sums of one column that do not wait for each other
_AHEAD = 8192  # bytes read before what is fetched is wanted, at least


class Ahead(NamedTuple):
    """How far to fetch ahead of columns."""

    x_row: Any  # bytes from one column to the next
    is_dense: Any  # whether there are no gaps between columns
    distance: Any  # bytes from what is read to what is fetched

    @classmethod
    def of(cls, b: Any, x_row: Any, row_bytes: Any) -> "Ahead":
        """So far that some bytes are read meanwhile, but by whole calls."""
        calls = b.udiv(const(_AHEAD), b.mul(row_bytes, const(COLUMNS)))
        calls = b.select(b.icmp_signed("<", calls, const(1)), const(1), calls)
        return cls(
            x_row,
            b.icmp_signed("==", x_row, row_bytes),
            b.mul(x_row, b.mul(calls, const(COLUMNS))),
        )


SumsOf = Callable[[list[Any], list[Any], Ahead], list[list[Any]]]


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


def _sum_lanes(b: Any, values: list[Any]) -> Any:
    """The sums over the lanes of four vectors, as one vector of four."""
    n = values[0].type.count

    def fold(x: Any, y: Any) -> Any:
        even, odd = list(range(0, 2 * n, 2)), list(range(1, 2 * n, 2))
        return b.fadd(shuffle(b, x, y, even), shuffle(b, x, y, odd))

    total = fold(fold(values[0], values[1]), fold(values[2], values[3]))
    while n > 4:  # n // 4 neighbouring lanes of each of the four are left
        even, odd = list(range(0, n, 2)), list(range(1, n, 2))
        total = b.fadd(shuffle(b, total, total, even), shuffle(b, total, total, odd))
        n //= 2
    return total


def _dots(rows: int, dtype: str, b: Any, args: list[Any]) -> None:
    """Four columns by `rows` rows of dot products; see `_dotsR_T`."""
    row_bytes = b.mul(args[8], const(ITEMSIZE[dtype]))
    in_groups(b, rows, 1, row_bytes, args, partial(_dot_sums, b, dtype, args[8]))


def in_groups(
    b: Any, rows: int, registers: int, row_bytes: Any, args: list[Any], sums_of: SumsOf
) -> None:
    """Write what `sums_of` finds, for as many columns at a time as there are registers.

    Args:
        registers: that a sum takes.
        row_bytes: of a column, gaps between columns not counted.
        sums_of: gives the lanes' sums of each column with each row, from the addresses of rows
            and columns and what is to be fetched for later ones.
    """
    a, a_row, x, x_row, c, c_row, d, d_row, inner, cols = args
    each = COLUMNS
    while each > 1 and rows * each * registers > REGISTERS // 2:
        each //= 2
    ahead = Ahead.of(b, x_row, row_bytes)

    def group(j: Any) -> None:
        along = b.mul(j, const(4))
        there = b.select(b.icmp_signed("!=", d, const(0)), b.add(d, along), d)
        here = [a, a_row, b.add(x, b.mul(x_row, j)), x_row, b.add(c, along), c_row, there, d_row]
        here += [inner, b.sub(cols, j)]
        a_rows, columns = _starts(b, rows, here)
        totals = []
        for k in range(0, COLUMNS, each):
            totals += sums_of(a_rows, columns[k : k + each], ahead)
        _finish(b, totals, here)

    loop(b, const(0), b.add(cols, const(COLUMNS - 1)), COLUMNS, group)


def _starts(b: Any, rows: int, args: list[Any]) -> tuple[list[Any], list[Any]]:
    """Addresses of the rows and of the columns that a call of `_dotsR_T` takes."""
    a, a_row, x, x_row, *_, cols = args
    columns = []
    for j in range(COLUMNS):  # columns that do not exist repeat column 0
        exists = b.icmp_signed("<", const(j), cols)
        columns.append(b.add(x, b.select(exists, b.mul(x_row, const(j)), const(0))))
    return [b.add(a, b.mul(a_row, const(r))) for r in range(rows)], columns


def _finish(b: Any, totals: list[list[Any]], args: list[Any]) -> None:
    """Write the sums of the lanes of `totals`, of each column with each row."""
    c, c_row, d, d_row, _, cols = args[4:]
    mask = mask_below(b, cols, COLUMNS)
    four = vector(COLUMNS)
    for r in range(len(totals[0])):
        result = _sum_lanes(b, [column[r] for column in totals])
        place = b.add(d, b.mul(d_row, const(r)))
        result = with_addend(b, result, d, partial(masked_load, b, four, place, mask, 4))
        to = b.add(c, b.mul(c_row, const(r)))
        with b.if_else(b.icmp_signed(">=", cols, const(COLUMNS))) as (whole, part):
            with whole:
                store(b, result, to)
            with part:  # takes some processors twenty steps
                masked_store(b, result, to, mask)


def _dot_sums(
    b: Any, dtype: str, count: Any, a_rows: list[Any], columns: list[Any], ahead: Ahead
) -> list[list[Any]]:
    """The products of each column with each row, summed over k but for the lanes of a vector."""
    if len(a_rows) == 1 and dtype == "f32":
        return [[_alone(b, dtype, count, a_rows[0], p)] for p in columns]
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


def _alone(b: Any, dtype: str, count: Any, row: Any, column: Any) -> Any:
    """The products of one column and one row likewise.

    Columns one after the other are read as they lie in memory, which then gives more.
    """
    kind, size = vector(), ITEMSIZE[dtype]
    totals = [Cell(Lanes(b, zeros(kind))) for _ in range(_STREAMS)]

    def add(k: Any, total: Cell, mask: Any = None) -> None:
        x = load(b, kind, b.add(row, b.mul(k, const(4))), 4)
        x = x if mask is None else b.select(mask, x, zeros(kind))
        w = load_f32(b, dtype, b.add(column, b.mul(k, const(size))), LANES)
        w = w if mask is None else b.select(mask, w, zeros(kind))
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


def fetch(b: Any, columns: list[Any], ahead: Ahead, done: Any, nbytes: int) -> None:
    """Fetch part of what later calls will read, in the order in which it lies in memory.

    The hardware fetches ahead of a program that reads one stream, not several: columns without
    gaps between them are fetched as if they were one.

    Args:
        done: bytes of each column that were read.
        nbytes: that are read next.
    """
    apart = b.select(ahead.is_dense, const(nbytes), ahead.x_row)
    done = b.mul(done, b.select(ahead.is_dense, const(len(columns)), const(1)))
    at = b.add(b.add(columns[0], ahead.distance), done)
    for _ in columns:
        for near in range(0, nbytes, FETCHED):
            prefetch(b, b.add(at, const(near)))
        at = b.add(at, apart)


def with_addend(b: Any, value: Any, d: Any, read: Callable[[], Any]) -> Any:
    """value + what `read` loads, or value where d is 0."""
    before = b.block
    added, after = b.append_basic_block("added"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed("!=", d, const(0)), added, after)
    b.position_at_end(added)
    total = b.fadd(value, read())
    b.branch(after)
    b.position_at_end(after)
    result = b.phi(value.type)
    result.add_incoming(value, before)
    result.add_incoming(total, added)
    return result


# _dotsR_T(a, a_row, x, x_row, c, c_row, d, d_row, count, columns): C[i, j] = sum over
# k < count of A[i, k] * X[j, k] (+ D[i, j]) for i < R and j < columns, where k is contiguous, A is
# f32 and X of dtype T; count >= LANES.
_dots1_f32 = void_intrinsic("gemm_dots1_f32", 10, partial(_dots, 1, "f32"))
_dots1_f16 = void_intrinsic("gemm_dots1_f16", 10, partial(_dots, 1, "f16"))
_dots1_bf16 = void_intrinsic("gemm_dots1_bf16", 10, partial(_dots, 1, "bf16"))
_dots4_f32 = void_intrinsic("gemm_dots4_f32", 10, partial(_dots, ROWS, "f32"))
_dots4_f16 = void_intrinsic("gemm_dots4_f16", 10, partial(_dots, ROWS, "f16"))
_dots4_bf16 = void_intrinsic("gemm_dots4_bf16", 10, partial(_dots, ROWS, "bf16"))

_D = DotsRecord(*range(len(DotsRecord._fields)))  # word numbers
# What a Kernel binds: the dot products of one row and of ROWS.
dots_one: Any = None
dots_four: Any = None


def dots(record, begin, end, scratch):
    """Chunks are ((b0, b1), block of columns): B is read once, where it lies."""
    r = i64_array(record, len(_D))
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
    "f32": Kernel(dots, "f32", dots_one=_dots1_f32, dots_four=_dots4_f32),
    "f16": Kernel(dots, "f16", dots_one=_dots1_f16, dots_four=_dots4_f16),
    "bf16": Kernel(dots, "bf16", dots_one=_dots1_bf16, dots_four=_dots4_bf16),
}
