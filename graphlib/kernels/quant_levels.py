"""Products of two quantised matrices: levels are multiplied as integers, exactly.

For few rows of A in Q8_0, Q8_1 or Q8_K. These are first laid out as the dot products like them: the
levels of a row, then corrections, then the scale of every line of 32. A line costs one integer dot
product and one float32 multiply-add, which is faster than with float32 rows; the result is the
product of the numbers that both stand for. Where rows have one scale for a whole block of B
(`goes_by_block`), that is added up as integers, too.

Corrections put right what levels of B are counted from, or are what their offsets are multiplied
with: for every line a vector of eight sums of A's levels, as the dot products add them, times what
they are worth; by blocks, the sum over either half of each line.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir

from yupana.graphlib.kernels.columns import ROWS, Ahead, in_groups
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_dots import dots, dots_record
from yupana.graphlib.kernels.gemm_plan import Gemm, Matrix, has_near_outputs
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.quant_dots import fetch_blocks, lines_at, row_bytes
from yupana.graphlib.kernels.quant_lines import (
    BLOCKS,
    LINE,
    OFFSET,
    ZEROS,
    Line,
    each_line,
    signed_levels,
)
from yupana.graphlib.kernels.quant_products import (
    BYTES,
    REALS,
    ROUNDED,
    WORDS,
    Row,
    add_block,
    add_line,
    dot,
    factors,
    is_wide,
    wide,
)
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.vector import (
    I16,
    I32,
    const,
    load,
    lone_half,
    loop,
    splat,
    store,
    sum_of,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.kernels.word_numbers import word_numbers
from yupana.graphlib.quants import FORMATS

_MOST_ROWS = 32  # beyond, A is worth expanding and B worth packing
_UNROLL = 4  # blocks of a line that are gone through in one go


def suits(gemm: Gemm) -> bool:
    """Whether `lower` takes this product, of A in a type of `ROUNDED` and a quantised B."""
    return gemm.rows <= _MOST_ROWS and has_near_outputs(gemm)


def workspace_bytes(gemm: Gemm) -> int:
    """Bytes of workspace that the steps of `lower` share."""
    return gemm.batches * gemm.rows * _row_bytes(gemm.inner)


def lower(gemm: Gemm, workspace: int) -> list[Step]:
    """The steps of a product that `suits`."""
    each, a, b = _row_bytes(gemm.inner), gemm.a.dtype, gemm.b.dtype
    row, sizes = gemm.a.strides[:3], (gemm.batch[1], gemm.rows, gemm.inner)
    laid_out = LayOutRecord(gemm.a.address, *row, workspace, each, *sizes)
    n_rows = gemm.batches * gemm.rows
    a_strides = (gemm.batch[1] * gemm.rows * each, gemm.rows * each, each, 1)
    levels = replace(gemm, a=Matrix(workspace, "Q8_0", a_strides))
    record, chunks = dots_record(levels)
    ns = 20.0 + gemm.batches * gemm.cols * gemm.inner * max(0.05, 0.025 * gemm.rows)
    return [
        Step(LAY_OUT[a, b], laid_out, n_rows, 20.0 + 0.1 * n_rows * gemm.inner),
        Step((BLOCK_DOTS if goes_by_block(a, b) else LINE_DOTS)[b], record, chunks, ns),
    ]


def _row_bytes(inner: int) -> int:
    """Bytes of one row of A as laid out: levels, corrections, scales."""
    return -(-(2 * inner + inner // LINE * 4) // 64) * 64


def goes_by_block(source_name: str, name: str) -> bool:
    """Whether rows of the first type meet blocks of the second as a whole."""
    return name in BLOCKS and FORMATS[source_name].block == FORMATS[name].block


def _lay_out(source_name: str, name: str, b: Any, args: list[Any]) -> None:
    """`_lay_out_S_T(source, out, count)`: a row of type S for products with rows of type T."""
    source, out, count = args
    row = Row.of(b, out, count)

    def line(x: Line, place: Any, at: Any) -> None:
        levels = signed_levels(b, x)
        eighth = b.sdiv(at, const(8))
        store(b, x.scale(1), b.add(row.scales, eighth))
        if is_wide(name):
            for i, half in enumerate(wide(b, levels)):
                store(b, half, b.add(out, b.add(b.mul(at, const(2)), const(LINE * i))), 2)
            return
        store(b, levels, b.add(out, at), 1)
        if goes_by_block(source_name, name):
            for i, half in enumerate(wide(b, levels)):
                store(b, sum_of(b, half), b.add(row.corrections, b.add(eighth, const(2 * i))), 2)
            return
        sums = dot(b, zeros(WORDS), ir.Constant(BYTES, [1] * LINE), levels)
        if source_name == "Q8_1" and name in ("Q4_1", "Q5_1"):
            alone = b.insert_element(zeros(REALS), stored_sum(b, place), ir.Constant(I32, 0))
            store(b, alone, b.add(row.corrections, at))
        elif name in OFFSET:
            store(b, b.fmul(b.sitofp(sums, REALS), x.scale(8)), b.add(row.corrections, at))
        elif ZEROS[name]:
            counted = b.mul(sums, ir.Constant(WORDS, [-ZEROS[name]] * WORDS.count))
            store(b, counted, b.add(row.corrections, at))

    each_line(b, source_name, source, count, line)


def stored_sum(b: Any, block: Any) -> Any:
    """The sum of a block of Q8_1 as it is stored, rounded: ggml takes that one for offsets."""
    return lone_half(b, load(b, I16, b.add(block, const(2)), 1))


def _line_dots(rows: int, name: str, b: Any, args: list[Any]) -> None:
    """As in quant_dots, of rows of A that `_lay_out` wrote."""
    block, count = FORMATS[name].block, args[8]

    def sums_of(a_rows: list[Any], columns: list[Any], ahead: Ahead) -> list[list[Any]]:
        sums = _no_sums(b, a_rows, columns)
        laid_out = [Row.of(b, start, count) for start in a_rows]

        def add_one(k: Any) -> None:
            found = [lines_at(b, name, w, k) for w in columns]
            for i, lines in enumerate(zip(*found, strict=True)):
                at = b.add(b.mul(k, const(block)), const(LINE * i))
                worth = factors(b, lines)
                for r, row in enumerate(laid_out):
                    each = zip(lines, worth(splat(b, row.scale(b, at), 8)), sums, strict=True)
                    for line, factor, totals in each:
                        add_line(b, name, line, row, at, factor, totals[r])

        def add_blocks(k: Any) -> None:
            fetch_blocks(b, name, columns, ahead, k, together)
            for u in range(together):
                add_one(b.add(k, const(u)))

        together = _UNROLL if block == LINE else 1
        n_blocks = b.sdiv(count, const(block))
        loop(b, const(0), n_blocks, together, add_blocks)
        if together > 1:
            rest = b.sub(n_blocks, b.srem(n_blocks, const(together)))
            loop(b, rest, n_blocks, 1, add_one)
        return [[total.get().value for total in totals] for totals in sums]

    in_groups(b, rows, 1, row_bytes(b, name, count), args, sums_of)


def _block_dots(rows: int, name: str, b: Any, args: list[Any]) -> None:
    """As `_line_dots`, of rows that have one scale for each block of B."""
    fmt, count = FORMATS[name], args[8]

    def sums_of(a_rows: list[Any], columns: list[Any], ahead: Ahead) -> list[list[Any]]:
        sums = _no_sums(b, a_rows, columns)
        laid_out = [Row.of(b, start, count) for start in a_rows]

        def add_blocks(k: Any) -> None:
            fetch_blocks(b, name, columns, ahead, k, 1)
            at, there = b.mul(k, const(fmt.block)), b.mul(k, const(fmt.nbytes))
            for w, totals in zip(columns, sums, strict=True):
                block = BLOCKS[name](b, b.add(w, there))
                for row, total in zip(laid_out, totals, strict=True):
                    add_block(b, block, row, at, total)

        n_blocks = b.sdiv(count, const(fmt.block))
        loop(b, const(0), n_blocks, 1, add_blocks)
        return [[total.get().value for total in totals] for totals in sums]

    in_groups(b, rows, 1, row_bytes(b, name, count), args, sums_of)


def _no_sums(b: Any, a_rows: list[Any], columns: list[Any]) -> list[list[Cell]]:
    return [[Cell(Lanes(b, zeros(REALS))) for _ in a_rows] for _ in columns]


_lay_out_of = {
    (a, name): void_intrinsic(f"quant_lay_out_{a}_{name}", 3, partial(_lay_out, a, name))
    for a, name in product(ROUNDED, FORMATS)
}
_dots_of = {
    (rows, name): void_intrinsic(f"quant_levels{rows}_{name}", 10, partial(_line_dots, rows, name))
    for rows, name in product((1, ROWS), FORMATS)
}
_block_dots_of = {
    (rows, name): void_intrinsic(f"quant_blocks{rows}_{name}", 10, partial(_block_dots, rows, name))
    for rows, name in product((1, ROWS), BLOCKS)
}


class LayOutRecord(NamedTuple):
    """Record of `lay_out_rows`; chunk = ((b0, b1), row)."""

    a: int
    a_b0: int
    a_b1: int
    a_row: int
    out: int
    out_row: int
    batch1: int
    rows: int
    inner: int


_L = word_numbers(LayOutRecord)  # word numbers
lay_out: Any = None  # what a Kernel binds


def lay_out_rows(record, begin, end, scratch):
    """Chunks are rows of A, one after the other in the output."""
    r = i64_array(record, _L.n_words)
    for chunk in range(begin, end):
        batch, row = chunk // r[_L.rows], chunk % r[_L.rows]
        b0, b1 = batch // r[_L.batch1], batch % r[_L.batch1]
        a = r[_L.a] + b0 * r[_L.a_b0] + b1 * r[_L.a_b1] + row * r[_L.a_row]
        lay_out(a, r[_L.out] + chunk * r[_L.out_row], r[_L.inner])


LAY_OUT = {
    pair: Kernel(lay_out_rows, "_".join(pair), lay_out=function)
    for pair, function in _lay_out_of.items()
}
LINE_DOTS = {
    name: Kernel(dots, f"levels_{name}", dots_one=_dots_of[1, name], dots_four=_dots_of[ROWS, name])
    for name in FORMATS
}
BLOCK_DOTS = {
    name: Kernel(
        dots,
        f"blocks_{name}",
        dots_one=_block_dots_of[1, name],
        dots_four=_block_dots_of[ROWS, name],
    )
    for name in BLOCKS
}
