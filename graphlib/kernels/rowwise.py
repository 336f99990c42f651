"""Row-wise kernels: the author writes what happens to one row of each operand.

A body is called for many rows at a time, which costs nothing to the author: a row of four
numbers is then as cheap as its arithmetic.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from numba import int64, njit, void

from yupana.graphlib.kernels.blocks import (
    ADDRESS,
    BLOCK,
    CODE,
    FLAT,
    HEAD,
    LOAD,
    OPERAND_WORDS,
    OUTER,
    SIZE,
    STEP,
    STORE,
    View,
    both_kernels,
    broadcast,
    collapse,
    head_words,
    is_wide,
    operand_words,
    outer_sizes,
)
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import call_body, call_convert, f64_words, i64_array
from yupana.graphlib.kernels.step import Step, float_word

_N_PARAMS = 8  # float parameters of a row function at most
_MAX_IN = 4
_BODY, _S1, _S2, _ROWS, _GROUP, _MOST, _PERIOD, _N_IN = range(HEAD, HEAD + 8)
_PARAMS = HEAD + 8  # float parameters, then the row lengths of the result and the sources
_LENGTHS = _PARAMS + _N_PARAMS
_DST = _LENGTHS + _MAX_IN + 1
_WORDS = _DST + (_MAX_IN + 1) * OPERAND_WORDS
_DIRECT = FLAT  # flag of an operand: rows are used where they lie, not through scratch memory
# What a body is told, at the start of the scratch memory: bytes from row to row come last.
_RECORD, _COUNT, _FIRST, _STRIDES = 0, 1, 2, 3
_CALL_WORDS = _STRIDES + _MAX_IN + 1
_CALL_BYTES = 64
_BODY_SIGNATURE = void(*[int64] * 6)
# Names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None
row: Any = None


class Rows:
    """An operation on rows (the last axis); the axes before it are broadcast together.

    Args:
        row: function (y, x0, …, i, p) that fills the row `y` from the rows of the sources; `i`
            is the number of the row within its matrix (axis -2), `p` the float parameters as an
            array of float64. Rows are contiguous, of the type computed in, and `y` shares memory
            with no source. Constants are written ``real(0.5)``, sums by `row_sum` and `row_dot`:
            the function itself is compiled to round as written.
        n_in: number of sources, 1 to 4.
        ns, row_ns: predicted time per element of the longest row, and per row.
    """

    def __init__(
        self, row: Callable[..., Any], n_in: int, ns: float = 0.3, row_ns: float = 5.0
    ) -> None:
        self._n_in = n_in
        self._ns, self._row_ns = ns, row_ns
        template = (rows1, rows2, rows3, rows4)[n_in - 1]
        name = row.__name__.strip("<>_")
        # LLVM takes the vectorised or the scalar form of a loop that stores by where rows lie in
        # memory; only arithmetic as written gives the same bits in both.
        self.bodies = both_kernels(
            template, f"{name}_", fastmath=(), signature=_BODY_SIGNATURE, row=row
        )

    def steps(
        self,
        dst: View,
        srcs: Sequence[View],
        params: Sequence[float] = (),
        period: int = 0,
        wide: bool | None = None,
    ) -> list[Step]:
        """The one step that computes `dst`; none if it has no rows or they are empty.

        `period` is the number of rows after which the row number starts again at 0 (default:
        the size of axis -2). `wide` says whether to compute in float64 where the operands'
        dtypes do not tell (indices are i32 and say nothing).
        """
        views = [dst, *srcs]
        outer = dst.shape[:-1]
        rows = math.prod(outer)
        lengths = [view.shape[-1] if view.shape else 1 for view in views]
        if rows == 0 or lengths[0] == 0:
            return []
        if wide is None:
            wide = is_wide(views)
        head = head_words(wide)
        heads = collapse([_outer(view, outer) for view in views])
        direct = _direct(views, lengths, head[2])
        group = max(BLOCK // max(lengths), 1)
        chunks = -(-rows // group)
        record = [*head, self.bodies[wide].address, *outer_sizes((*heads[0].shape, 1)), rows, group]
        record += [rows if all(direct) else group, period or (outer[-1] if outer else 1)]
        record += [self._n_in, *map(float_word, params), *[0] * (_N_PARAMS - len(params))]
        record += lengths + [0] * (_MAX_IN + 1 - len(lengths))
        for view, outer_view, is_direct in zip(views, heads, direct, strict=True):
            step = view.strides[-1] if view.strides else view.itemsize
            strides = (*outer_view.strides, step)
            whole = View(view.address, (*outer_view.shape, 1), strides, view.code, view.itemsize)
            record += [*operand_words(whole)[:_DIRECT], int(is_direct)]
        scratch = _CALL_BYTES + sum(64 + 8 * group * n for n in lengths)
        ns = rows * (self._row_ns + self._ns * max(lengths) * (2 if wide else 1))
        return [Step(_DRIVER, tuple(record), chunks, ns, scratch)]


SUMS = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "forceinline": True}


@njit(**SUMS)
def row_sum(x):
    """Sum of a row, for row functions; added in float64."""
    total = 0.0
    for j in range(x.size):
        total += x[j]
    return total


@njit(**SUMS)
def row_dot(x, y):
    """Sum of the products of two rows, for row functions; in the type computed in."""
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j] * y[j]
    return total


def _outer(view: View, outer: tuple[int, ...]) -> View:
    """The axes before the last, broadcast to `outer`."""
    rows = View(view.address, view.shape[:-1], view.strides[:-1], view.code, view.itemsize)
    return broadcast(rows, outer)


def _direct(views: Sequence[View], lengths: Sequence[int], native: int) -> list[bool]:
    """Which operands need no conversion, no gathering and, for the result, no room of its own."""
    direct = [
        view.code == native and (n == 1 or view.strides[-1] == view.itemsize)
        for view, n in zip(views, lengths, strict=True)
    ]
    # A result that takes over a source's memory is made elsewhere: bodies may write `y` before
    # they have read all sources.
    taken = any(
        is_direct and view.address == views[0].address
        for view, is_direct in zip(views[1:], direct[1:], strict=True)
    )
    return [direct[0] and not taken, *direct[1:]]


def rows1(y, x0, x1, x2, x3, info):
    """Row functions of one source."""
    c, r, p, i = _told(info)
    n, n0 = r[_LENGTHS], r[_LENGTHS + 1]
    dy, d0 = c[_STRIDES], c[_STRIDES + 1]
    period = r[_PERIOD]
    for _ in range(c[_COUNT]):
        row(array(y, n), array(x0, n0), i, p)
        y, x0 = y + dy, x0 + d0
        i = i + 1 if i + 1 < period else 0


def rows2(y, x0, x1, x2, x3, info):
    """Row functions of two sources."""
    c, r, p, i = _told(info)
    n, n0, n1 = r[_LENGTHS], r[_LENGTHS + 1], r[_LENGTHS + 2]
    dy, d0, d1 = c[_STRIDES], c[_STRIDES + 1], c[_STRIDES + 2]
    period = r[_PERIOD]
    for _ in range(c[_COUNT]):
        row(array(y, n), array(x0, n0), array(x1, n1), i, p)
        y, x0, x1 = y + dy, x0 + d0, x1 + d1
        i = i + 1 if i + 1 < period else 0


def rows3(y, x0, x1, x2, x3, info):
    """Row functions of three sources."""
    c, r, p, i = _told(info)
    n, n0, n1, n2 = r[_LENGTHS], r[_LENGTHS + 1], r[_LENGTHS + 2], r[_LENGTHS + 3]
    dy, d0, d1, d2 = c[_STRIDES], c[_STRIDES + 1], c[_STRIDES + 2], c[_STRIDES + 3]
    period = r[_PERIOD]
    for _ in range(c[_COUNT]):
        row(array(y, n), array(x0, n0), array(x1, n1), array(x2, n2), i, p)
        y, x0, x1, x2 = y + dy, x0 + d0, x1 + d1, x2 + d2
        i = i + 1 if i + 1 < period else 0


def rows4(y, x0, x1, x2, x3, info):
    """Row functions of four sources."""
    c, r, p, i = _told(info)
    n, n0, n1 = r[_LENGTHS], r[_LENGTHS + 1], r[_LENGTHS + 2]
    n2, n3 = r[_LENGTHS + 3], r[_LENGTHS + 4]
    dy, d0, d1 = c[_STRIDES], c[_STRIDES + 1], c[_STRIDES + 2]
    d2, d3 = c[_STRIDES + 3], c[_STRIDES + 4]
    period = r[_PERIOD]
    for _ in range(c[_COUNT]):
        row(array(y, n), array(x0, n0), array(x1, n1), array(x2, n2), array(x3, n3), i, p)
        y, x0, x1, x2, x3 = y + dy, x0 + d0, x1 + d1, x2 + d2, x3 + d3
        i = i + 1 if i + 1 < period else 0


@for_kernels
def _told(info):
    """What the driver says of a run of rows: the run, the record, parameters, first row number."""
    c = i64_array(info, _CALL_WORDS)
    p = f64_words(c[_RECORD] + 8 * _PARAMS, _N_PARAMS)
    return c, i64_array(c[_RECORD], _WORDS), p, c[_FIRST]


def rowwise(record, begin, end, scratch):
    """Chunks are groups of rows; the body gets as many rows as lie at equal distances."""
    r = i64_array(record, _WORDS)
    c = i64_array(scratch, _CALL_WORDS)
    c[_RECORD] = record
    s1, s2 = r[_S1], r[_S2]
    number, stop = begin * r[_GROUP], min(end * r[_GROUP], r[_ROWS])
    while number < stop:
        i2, i1, i0 = number, 0, 0
        if number >= s2:
            i2, i1 = number % s2, number // s2
            if i1 >= s1:
                i1, i0 = i1 % s1, i1 // s1
        count = min(stop - number, s2 - i2, r[_MOST])
        c[_COUNT] = count
        c[_FIRST] = number % r[_PERIOD]
        out = _first(r, 0, i0, i1, i2)
        stride = r[_DST + OUTER + 2]
        packed = r[_LENGTHS] * r[SIZE]
        spare = scratch + _CALL_BYTES
        result = out if r[_DST + _DIRECT] == 1 else spare
        c[_STRIDES] = stride if result == out else packed
        spare += r[_GROUP] * r[_LENGTHS] * 8 + 64
        x0 = _source(r, c, 1, i0, i1, i2, spare)
        x1 = x2 = x3 = x0
        if r[_N_IN] > 1:
            spare += r[_GROUP] * r[_LENGTHS + 1] * 8 + 64
            x1 = _source(r, c, 2, i0, i1, i2, spare)
        if r[_N_IN] > 2:
            spare += r[_GROUP] * r[_LENGTHS + 2] * 8 + 64
            x2 = _source(r, c, 3, i0, i1, i2, spare)
        if r[_N_IN] > 3:
            spare += r[_GROUP] * r[_LENGTHS + 3] * 8 + 64
            x3 = _source(r, c, 4, i0, i1, i2, spare)
        call_body(r[_BODY], result, x0, x1, x2, x3, scratch)
        if result != out:
            n, step = r[_LENGTHS], r[_DST + STEP]
            if stride == n * step:
                n, count = n * count, 1
            for k in range(count):
                address = out + k * stride
                call_convert(r[STORE], result + k * packed, n, r[_DST + CODE], address, step)
        number += c[_COUNT]


@for_kernels
def _first(r, k, i0, i1, i2):
    """Address of a row of operand `k`."""
    at = _DST + k * OPERAND_WORDS
    near = r[at + ADDRESS] + i2 * r[at + OUTER + 2]
    return near + i1 * r[at + OUTER + 1] + i0 * r[at + OUTER]


@for_kernels
def _source(r, c, k, i0, i1, i2, out):
    """Address of the first row of a run of source `k`, contiguous and of the type computed in."""
    at = _DST + k * OPERAND_WORDS
    address = _first(r, k, i0, i1, i2)
    stride = r[at + OUTER + 2]
    if r[at + _DIRECT] == 1:
        c[_STRIDES + k] = stride
        return address
    n, count, step = r[_LENGTHS + k], c[_COUNT], r[at + STEP]
    packed = n * r[SIZE]
    c[_STRIDES + k] = packed
    if stride == 0:  # one row for all
        c[_STRIDES + k], count = 0, 1
    elif stride == n * step:
        n, count = n * count, 1
    for j in range(count):
        call_convert(r[LOAD], address + j * stride, step, r[at + CODE], n, out + j * packed)
    return out


_DRIVER = Kernel(rowwise)
