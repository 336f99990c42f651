"""Products of many rounded rows with a quantised matrix: integers, sixteen columns at a time.

A chunk lays the levels of sixteen columns out as a panel, four neighbouring levels of each to a
vector, and takes all rows of A through it. An instruction multiplies a vector with four levels of
a row and adds the products column by column, so a line of 32 takes eight of them, one conversion
and two multiplications by scales for sixteen results. That needs AVX-512 with VNNI; elsewhere many
rows are multiplied as float32 (see `matmul`).
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

from yupana.graphlib.kernels.columns import with_addend
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_plan import Gemm, has_near_outputs, rows_of
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.quant_levels import stored_sum
from yupana.graphlib.kernels.quant_lines import (
    I8,
    LINE,
    OFFSET,
    ZEROS,
    Line,
    each_line,
    lines_of,
    signed_levels,
)
from yupana.graphlib.kernels.quant_products import ROUNDED
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.vector import (
    F32,
    FEATURES,
    HAS_AVX512,
    I32,
    const,
    declare,
    load,
    loop,
    mask_below,
    masked_load,
    masked_store,
    multiply_add,
    shuffle,
    splat,
    store,
    sum_of,
    transpose,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.kernels.word_numbers import word_numbers
from yupana.graphlib.quants import FORMATS

HAS_VNNI = HAS_AVX512 and "avx512vnni" in FEATURES
_LEAST_ROWS = 5  # fewer do not repay laying B out
_ROWS, _COLUMNS = 8, 16  # of a tile
_BYTES = ir.VectorType(I8, 4 * _COLUMNS)
_WORDS, _REALS = ir.VectorType(I32, _COLUMNS), ir.VectorType(F32, _COLUMNS)
_DOT_BYTES = _BYTES if llvm.llvm_version_info[0] >= 22 else _WORDS
_WIDE = 4 * _COLUMNS  # bytes of a vector
_LEVELS = LINE // 4 * _WIDE  # bytes of a line's levels in a panel
_PARTS = {"Q2_K": 2, "Q3_K": 2, "Q6_K": 2}  # scales of a line, where there are several


def suits(gemm: Gemm) -> bool:
    """Whether `lower` takes this product, of A in a type of `ROUNDED` and a quantised B."""
    many = gemm.rows >= _LEAST_ROWS and gemm.batches == 1
    return HAS_VNNI and many and has_near_outputs(gemm)


def workspace_bytes(gemm: Gemm) -> int:
    """Bytes of workspace that the steps of `lower` share."""
    return gemm.rows * _row_bytes(gemm)


def lower(gemm: Gemm, workspace: int) -> list[Step]:
    """The steps of a product that `suits`."""
    a, b, each = gemm.a, gemm.b, _row_bytes(gemm)
    laid_out = _RowsRecord(a.address, a.strides[2], workspace, each, gemm.inner)
    record = PanelsRecord(
        workspace, each, *_rows(b), *_rows(gemm.c), *_rows(gemm.d), gemm.rows, gemm.cols, gemm.inner
    )
    panels = -(-gemm.cols // _COLUMNS)
    ns = 20.0 + panels * _COLUMNS * gemm.inner * (0.2 + 0.006 * gemm.rows)
    scratch = gemm.inner // LINE * _line_bytes(b.dtype)
    return [
        Step(ROWS[a.dtype, b.dtype], laid_out, gemm.rows, 20.0 + 0.1 * gemm.rows * gemm.inner),
        Step(PANELS[b.dtype], record, panels, ns, scratch),
    ]


def _rows(matrix: Any) -> tuple[int, int]:
    """Address, and bytes from row to row."""
    address, _, _, row = rows_of(matrix)
    return address, row


def _row_bytes(gemm: Gemm) -> int:
    """Bytes of a row of A as laid out: levels, scales of the lines, corrections of their parts."""
    per_line = LINE + 4 + 4 * _PARTS.get(gemm.b.dtype, 1)
    return -(-gemm.inner // LINE * per_line // 64) * 64


def _line_bytes(name: str) -> int:
    """Bytes of a line in a panel: levels, scales, offsets."""
    return _LEVELS + _WIDE * _PARTS.get(name, 1) * (2 if name in OFFSET else 1)


def _lay_out(source_name: str, name: str, b: Any, args: list[Any]) -> None:
    """`quant_row_S_T(source, out, count)`: a row of type S for panels of type T."""
    source, out, count = args
    parts = _PARTS.get(name, 1)
    scales = b.add(out, count)
    corrections = b.add(scales, b.sdiv(count, const(LINE // 4)))

    def line(x: Line, place: Any, at: Any) -> None:
        levels = signed_levels(b, x)
        store(b, levels, b.add(out, at), 1)
        scale = b.extract_element(x.scale(1), ir.Constant(I32, 0))
        eighth = b.sdiv(at, const(LINE // 4))
        store(b, scale, b.add(scales, eighth))
        each = LINE // parts
        for part in range(parts):
            to = b.add(corrections, b.add(b.mul(eighth, const(parts)), const(4 * part)))
            if source_name == "Q8_1" and name in ("Q4_1", "Q5_1"):
                store(b, stored_sum(b, place), to)
                continue
            some = shuffle(b, levels, levels, list(range(part * each, (part + 1) * each)))
            total = sum_of(b, b.sext(some, ir.VectorType(I32, each)))
            if name in OFFSET:
                store(b, b.fmul(b.sitofp(total, F32), scale), to)
            else:
                store(b, b.mul(total, ir.Constant(I32, -ZEROS[name])), to)

    each_line(b, source_name, source, count, line)


def _pack(name: str, b: Any, args: list[Any]) -> None:
    """`quant_panel_T(source, row, columns, count, out)`: rows of blocks as a panel.

    Columns that do not exist repeat the last.
    """
    source, row, columns, count, out = args
    fmt, line_bytes = FORMATS[name], _line_bytes(name)
    lines = fmt.block // LINE
    with b.goto_entry_block():
        near = b.ptrtoint(
            b.alloca(ir.ArrayType(I8, lines * _COLUMNS * LINE)), ir.IntType(64)
        )  # the levels as they come: a line of each column
    last = b.sub(columns, const(1))

    def block(k: Any) -> None:
        first = b.add(out, b.mul(k, const(lines * line_bytes)))

        def column(c: Any) -> None:
            exists = b.select(b.icmp_signed("<", c, last), c, last)
            start = b.add(source, b.mul(row, exists))
            place = b.add(start, b.mul(k, const(fmt.nbytes)))
            for i, line in enumerate(lines_of(b, name, place)):
                to = b.add(near, b.add(b.mul(c, const(LINE)), const(i * _COLUMNS * LINE)))
                store(b, line.levels, to, 1)
                factors(line, b.add(b.add(first, b.mul(c, const(4))), const(i * line_bytes)))

        def turn(i: Any) -> None:
            start = b.add(near, b.mul(i, const(_COLUMNS * LINE)))
            to = b.add(first, b.mul(i, const(line_bytes)))
            eight = ir.VectorType(I32, 8)
            halves = []
            for half in range(2):
                places = [b.add(start, const((half * 8 + c) * LINE)) for c in range(8)]
                halves.append(transpose(b, [load(b, eight, place, 1) for place in places]))
            for j, (low, high) in enumerate(zip(*halves, strict=True)):
                both = shuffle(b, low, high, list(range(_COLUMNS)))
                store(b, both, b.add(to, const(j * _WIDE)))

        loop(b, const(0), const(_COLUMNS), 1, column)
        loop(b, const(0), const(lines), 1, turn)

    def factors(line: Line, to: Any) -> None:
        parts = _PARTS.get(name, 1)
        each = [line.scale(2)] + ([line.offset(2)] if line.offset else [])
        for k, (values, part) in enumerate(product(each, range(parts))):
            value = b.extract_element(values, ir.Constant(I32, part))
            store(b, value, b.add(to, const(_LEVELS + k * _WIDE)))

    loop(b, const(0), b.sdiv(count, const(fmt.block)), 1, block)


def _multiply(name: str, b: Any, args: list[Any]) -> None:
    """`quant_tile_T(a, a_row, rows, panel, c, c_row, d, d_row, columns, count)`.

    Rows that do not exist repeat the last.
    """
    a, a_row, rows, panel, c, c_row, d, d_row, columns, count = args
    totals = [Cell(Lanes(b, zeros(_REALS))) for _ in range(_ROWS)]
    starts = []
    for r in range(_ROWS):
        exists = b.icmp_signed("<", const(r), rows)
        starts.append(b.add(a, b.mul(a_row, b.select(exists, const(r), b.sub(rows, const(1))))))
    n_lines = b.sdiv(count, const(LINE))
    scales_at, corrections_at = count, b.add(count, b.mul(n_lines, const(4)))
    parts = _PARTS.get(name, 1)

    def line(i: Any) -> None:
        w = b.add(panel, b.mul(i, const(_line_bytes(name))))
        at = b.mul(i, const(LINE))
        scale_at = b.add(scales_at, b.mul(i, const(4)))
        correct_at = b.add(corrections_at, b.mul(i, const(4 * parts)))
        for part in range(parts):
            there = b.add(correct_at, const(4 * part))
            sums = [_first(start, there) for start in starts]
            for j in range(part * 8 // parts, (part + 1) * 8 // parts):
                levels = load(b, _BYTES, b.add(w, const(j * _WIDE)), 1)
                where = b.add(at, const(4 * j))
                for r, start in enumerate(starts):
                    four = splat(b, load(b, I32, b.add(start, where), 1), _COLUMNS)
                    sums[r] = _dot(b, sums[r], levels, four)
            factor = load(b, _REALS, b.add(w, const(_LEVELS + part * _WIDE)), 4)
            for start, total, value in zip(starts, totals, sums, strict=True):
                scale = splat(b, load(b, F32, b.add(start, scale_at), 4), _COLUMNS)
                worth = b.fmul(factor, scale)
                found = multiply_add(b, b.sitofp(value, _REALS), worth, total.get().value)
                if name in OFFSET:
                    offset = load(b, _REALS, b.add(w, const(_LEVELS + (parts + part) * _WIDE)), 4)
                    correction = splat(b, load(b, F32, b.add(start, there), 4), _COLUMNS)
                    found = multiply_add(b, offset, correction, found)
                total.set(Lanes(b, found))

    def _first(start: Any, there: Any) -> Any:
        if not ZEROS[name]:
            return zeros(_WORDS)
        return splat(b, load(b, I32, b.add(start, there), 4), _COLUMNS)

    loop(b, const(0), n_lines, 1, line)
    mask = mask_below(b, columns, _COLUMNS)
    for r, total in enumerate(totals):
        with b.if_then(b.icmp_signed("<", const(r), rows)):
            place, to = (b.add(x, b.mul(step, const(r))) for x, step in ((d, d_row), (c, c_row)))
            read = partial(masked_load, b, _REALS, place, mask, 4)
            masked_store(b, with_addend(b, total.get().value, d, read), to, mask)


def _dot(b: Any, first: Any, levels: Any, four: Any) -> Any:
    """first + products of four levels without sign and four with one, column by column."""
    kinds = [_WORDS, _DOT_BYTES, _DOT_BYTES]
    function = declare(b.module, "llvm.x86.avx512.vpdpbusd.512", _WORDS, kinds)
    return b.call(function, [first, *(b.bitcast(x, _DOT_BYTES) for x in (levels, four))])


class _RowsRecord(NamedTuple):
    """Record of `lay_out_row`; chunk = row."""

    a: int
    a_row: int
    out: int
    out_row: int
    inner: int


class PanelsRecord(NamedTuple):
    """Record of `multiply_panels`; chunk = panel."""

    a: int
    a_row: int
    b: int
    b_row: int
    c: int
    c_row: int
    d: int
    d_row: int
    rows: int
    cols: int
    inner: int


_R = word_numbers(_RowsRecord)  # word numbers
_P = word_numbers(PanelsRecord)
lay_out: Any = None  # what a Kernel binds
pack: Any = None
multiply: Any = None


def lay_out_row(record, begin, end, scratch):
    """Chunks are rows of A."""
    r = i64_array(record, _R.n_words)
    for i in range(begin, end):
        lay_out(r[_R.a] + i * r[_R.a_row], r[_R.out] + i * r[_R.out_row], r[_R.inner])


def multiply_panels(record, begin, end, scratch):
    """Chunks are panels of columns."""
    p = i64_array(record, _P.n_words)
    for chunk in range(begin, end):
        j = chunk * _COLUMNS
        columns = min(_COLUMNS, p[_P.cols] - j)
        pack(p[_P.b] + j * p[_P.b_row], p[_P.b_row], columns, p[_P.inner], scratch)
        for i in range(0, p[_P.rows], _ROWS):
            multiply(
                p[_P.a] + i * p[_P.a_row],
                p[_P.a_row],
                min(_ROWS, p[_P.rows] - i),
                scratch,
                p[_P.c] + i * p[_P.c_row] + 4 * j,
                p[_P.c_row],
                p[_P.d] + (i * p[_P.d_row] + 4 * j if p[_P.d] != 0 else 0),
                p[_P.d_row],
                columns,
                p[_P.inner],
            )


def _by_type(name: str, n_args: int, build: Callable[..., None]) -> dict[str, Any]:
    return {
        kind: void_intrinsic(f"{name}_{kind}", n_args, partial(build, kind)) for kind in FORMATS
    }


_row_of = {
    (a, name): void_intrinsic(f"quant_row_{a}_{name}", 3, partial(_lay_out, a, name))
    for a, name in product(ROUNDED, FORMATS)
}
_pack_of, _multiply_of = _by_type("quant_panel", 5, _pack), _by_type("quant_tile", 10, _multiply)
ROWS = {
    pair: Kernel(lay_out_row, "_".join(pair), lay_out=function)
    for pair, function in _row_of.items()
}
PANELS = {
    name: Kernel(multiply_panels, name, pack=_pack_of[name], multiply=_multiply_of[name])
    for name in FORMATS
}
