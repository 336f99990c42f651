"""Sums of rows with weights, where the rows lie: what attention makes of the values it sees.

    y[i, d] = sum_p w[i, p] · v[p, d]  (+ y[i, d])

For few rows of weights: v is read once from memory, and packing it would cost more. Quantised rows
are read likewise where their blocks are single lines.
"""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.quant_lines import LINE, lines_of, numbers
from yupana.graphlib.kernels.vector import (
    DTYPES,
    F32,
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
    splat,
    vector,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.kernels.word_numbers import word_numbers
from yupana.graphlib.quants import FORMATS

QUANTISED = tuple(name for name, fmt in FORMATS.items() if fmt.block == LINE)  # types of v
ROWS = 4  # of weights that a call takes
_WIDE = 2  # vectors of a row of v that are read together
_UNROLL = 4  # rows of v whose sums do not wait for each other, where there is one row of weights
_AHEAD = 16  # rows of v from what is read to what is fetched


class MixRecord(NamedTuple):
    """Record of `mix`; strides in bytes."""

    w: int  # f32, (rows, seen)
    w_row: int
    v: int  # (seen, width)
    v_row: int
    y: int  # f32, (rows, width)
    y_row: int
    adds: int  # whether to what y holds
    rows: int
    seen: int
    width: int


def _read(b: Any, dtype: str, start: Any, n: int, mask: Any) -> list[Any]:
    """`n` vectors of a row of v from address `start` on."""
    if dtype in FORMATS:
        line = numbers(b, lines_of(b, dtype, start)[0])
        return [shuffle(b, line, line, [*range(k, k + LANES)]) for k in range(0, LINE, LANES)]
    places = [b.add(start, const(j * LANES * ITEMSIZE[dtype])) for j in range(n)]
    return [load_f32(b, dtype, place, LANES, mask) for place in places]


def _mix(rows: int, dtype: str, b: Any, args: list[Any]) -> None:
    """Write `rows` rows of y; see `_mixR_T`."""
    w, w_row, v, v_row, y, y_row, adds, count, width = args
    kind = vector()
    # Elements that lie together, their bytes, and vectors that are read together.
    if dtype in FORMATS:
        unit, size, wide = LINE, FORMATS[dtype].nbytes, LINE // LANES
    else:
        unit, size, wide = 1, ITEMSIZE[dtype], _WIDE
    unroll = max(min(_UNROLL, REGISTERS // 2 // wide), 1) if rows == 1 else 1
    ahead = b.mul(v_row, const(_AHEAD))
    all_lanes, no_lanes = mask_below(b, const(LANES)), mask_below(b, const(0))
    is_added = b.icmp_signed("!=", adds, const(0))

    def part(d: Any, n: int, left: Any = None) -> None:
        """`n` vectors of the results from element `d` on, or one of them, of `left` elements."""
        mask = None if left is None else mask_below(b, left)
        sums = [
            [[Cell(Lanes(b, zeros(kind))) for _ in range(n)] for _ in range(rows)]
            for _ in range(unroll)
        ]

        def add(p: Any, some: list[list[Cell]]) -> None:
            start = b.add(b.add(v, b.mul(v_row, p)), b.mul(b.sdiv(d, const(unit)), const(size)))
            for near in range(0, n * LANES // unit * size, FETCHED):
                prefetch(b, b.add(b.add(start, ahead), const(near)), 1)
            values = _read(b, dtype, start, n, mask)
            for r, totals in enumerate(some):
                place = b.add(b.add(w, b.mul(w_row, const(r))), b.mul(p, const(4)))
                weight = splat(b, load(b, F32, place, 4))
                for value, total in zip(values, totals, strict=True):
                    total.set(Lanes(b, multiply_add(b, weight, value, total.get().value)))

        def add_some(p: Any) -> None:
            for u, some in enumerate(sums):
                add(b.add(p, const(u)), some)

        loop(b, const(0), count, unroll, add_some)
        if unroll > 1:
            rest = b.sub(count, b.srem(count, const(unroll)))
            loop(b, rest, count, 1, lambda p: add(p, sums[0]))
        shown = all_lanes if mask is None else mask
        before = b.select(is_added, shown, no_lanes)
        for r, j in product(range(rows), range(n)):
            total = sums[0][r][j].get().value
            for some in sums[1:]:
                total = b.fadd(total, some[r][j].get().value)
            to = b.add(b.add(y, b.mul(y_row, const(r))), b.mul(d, const(4)))
            to = b.add(to, const(4 * j * LANES))
            total = b.fadd(total, masked_load(b, kind, to, before, 4))
            masked_store(b, total, to, shown)

    loop(b, const(0), width, wide * LANES, lambda d: part(d, wide))
    if dtype in DTYPES:  # a row of blocks is none that vectors do not fill
        rest, end = b.srem(width, const(wide * LANES)), b.add(width, const(LANES - 1))
        loop(b, b.sub(width, rest), end, LANES, lambda d: part(d, 1, b.sub(width, d)))


# _mixR_T(w, w_row, v, v_row, y, y_row, adds, count, width): R rows, with v of dtype T.
_mix_of = {
    (rows, name): void_intrinsic(f"attention_mix{rows}_{name}", 9, partial(_mix, rows, name))
    for rows, name in product((1, ROWS), (*DTYPES, *QUANTISED))
}

_M = word_numbers(MixRecord)  # word numbers
# What a Kernel binds: the sums of one row and of ROWS.
mix_one: Any = None
mix_four: Any = None


def mix(record, begin, end, scratch):
    """All rows; there is one chunk."""
    m = i64_array(record, _M.n_words)
    i = 0
    while i < m[_M.rows]:
        w, y = m[_M.w] + i * m[_M.w_row], m[_M.y] + i * m[_M.y_row]
        if m[_M.rows] - i >= ROWS:
            mix_four(
                w, m[_M.w_row], m[_M.v], m[_M.v_row], y, m[_M.y_row], m[_M.adds],
                m[_M.seen], m[_M.width],
            )  # fmt: skip
            i += ROWS
        else:
            mix_one(
                w, m[_M.w_row], m[_M.v], m[_M.v_row], y, m[_M.y_row], m[_M.adds],
                m[_M.seen], m[_M.width],
            )  # fmt: skip
            i += 1


MIX = {
    name: Kernel(mix, name, mix_one=_mix_of[1, name], mix_four=_mix_of[ROWS, name])
    for name in (*DTYPES, *QUANTISED)
}
