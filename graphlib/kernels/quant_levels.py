"""Products of two quantised matrices: levels are multiplied as integers, exactly.

For few rows of A in Q8_0, Q8_1 or Q8_K. These are first laid out as the dot products like them: the
levels of a row, then for every line of 32 a vector that puts right what B's levels are counted
from, then the scales. A line costs one integer dot product and one float32 multiply-add, which is
faster than with float32 rows; the result is the product of the numbers that both stand for.

Instructions multiply bytes without sign by bytes with one. Those of AVX2 add two products in 16
bits, too few if B is of such a type, too: there levels of both sides have 16 bits and a sign, and
nothing is to be put right.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_dots import ROWS, dots, dots_record, in_groups
from yupana.graphlib.kernels.gemm_plan import Gemm, Matrix, has_near_outputs
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.quant_dots import fetch_blocks, lines_at
from yupana.graphlib.kernels.quant_lines import I8, LINE, Line, lines_of, signed_levels
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.vector import (
    F32,
    FEATURES,
    HAS_AVX2,
    I16,
    I32,
    I64,
    const,
    declare,
    half_to_f32,
    load,
    lone_half,
    loop,
    multiply_add,
    shuffle,
    splat,
    store,
    vector,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.quants import FORMATS

ROUNDED = ("Q8_0", "Q8_1", "Q8_K")  # types of A
_MOST_ROWS = 32  # beyond, A is worth expanding and B worth packing
_UNROLL = 4  # blocks of a line that are gone through in one go
_BYTES, _WORDS, _REALS = ir.VectorType(I8, LINE), ir.VectorType(I32, 8), vector(8)
_PAIRS = ir.VectorType(I16, LINE // 2)
_HAS_VNNI = {"avx512vnni", "avx512vl"} <= FEATURES or "avxvnni" in FEATURES
# How the instruction's intrinsic takes its bytes changed with LLVM 22.
_VNNI_BYTES = _BYTES if llvm.llvm_version_info[0] >= 22 else _WORDS


def suits(gemm: Gemm) -> bool:
    """Whether `lower` takes this product, of A in a type of `ROUNDED` and a quantised B."""
    return gemm.rows <= _MOST_ROWS and has_near_outputs(gemm)


def workspace_bytes(gemm: Gemm) -> int:
    """Bytes of workspace that the steps of `lower` share."""
    return gemm.batches * gemm.rows * _row_bytes(gemm.inner)


def lower(gemm: Gemm, workspace: int) -> list[Step]:
    """The steps of a product that `suits`."""
    each, b = _row_bytes(gemm.inner), gemm.b.dtype
    row, sizes = gemm.a.strides[:3], (gemm.batch[1], gemm.rows, gemm.inner)
    laid_out = LayOutRecord(gemm.a.address, *row, workspace, each, *sizes)
    n_rows = gemm.batches * gemm.rows
    a_strides = (gemm.batch[1] * gemm.rows * each, gemm.rows * each, each, 1)
    levels = replace(gemm, a=Matrix(workspace, "Q8_0", a_strides))
    record, chunks = dots_record(levels)
    ns = 20.0 + gemm.batches * gemm.cols * gemm.inner * max(0.05, 0.025 * gemm.rows)
    return [
        Step(LAY_OUT[gemm.a.dtype, b], laid_out, n_rows, 20.0 + 0.1 * n_rows * gemm.inner),
        Step(LEVEL_DOTS[b], record, chunks, ns),
    ]


def _row_bytes(inner: int) -> int:
    """Bytes of one row of A as laid out: levels, corrections, scales."""
    return -(-(2 * inner + inner // LINE * 4) // 64) * 64


def _dot(b: Any, first: Any, unsigned: Any, signed: Any) -> Any:
    """first + products of <32 x i8>; four of the eight sums are over the first 16 of them."""
    if _HAS_VNNI:
        kinds = [_WORDS, _VNNI_BYTES, _VNNI_BYTES]
        function = declare(b.module, "llvm.x86.avx512.vpdpbusd.256", _WORDS, kinds)
        return b.call(
            function, [first, b.bitcast(unsigned, _VNNI_BYTES), b.bitcast(signed, _VNNI_BYTES)]
        )
    if HAS_AVX2:
        function = declare(b.module, "llvm.x86.avx2.pmadd.ub.sw", _PAIRS, [_BYTES] * 2)
        pairs = b.call(function, [unsigned, signed])
        return b.add(first, _pairs(b, pairs, ir.Constant(_PAIRS, [1] * (LINE // 2))))
    halves = []
    for start in (0, LINE // 2):
        x, y = (b.zext(_part(b, unsigned, start), _PAIRS), b.sext(_part(b, signed, start), _PAIRS))
        pairs = _pairs(b, x, y)
        low, high = (shuffle(b, pairs, pairs, list(range(k, k + 4))) for k in (0, 4))
        halves.append(b.add(low, high))
    return b.add(first, shuffle(b, halves[0], halves[1], list(range(8))))


def _part(b: Any, levels: Any, start: int) -> Any:
    """Half of the levels of a line, <16 x i8>."""
    return shuffle(b, levels, levels, list(range(start, start + LINE // 2)))


def _wide(b: Any, levels: Any) -> list[Any]:
    """Levels with a sign as the halves of a line in 16 bits."""
    return [b.sext(_part(b, levels, start), _PAIRS) for start in (0, LINE // 2)]


def _is_wide(name: str) -> bool:
    """Whether levels of this type are multiplied in 16 bits."""
    return name in ROUNDED and HAS_AVX2 and not _HAS_VNNI


def _pairs(b: Any, x: Any, y: Any) -> Any:
    """Products of <16 x i16>, some two of them added to each of eight sums."""
    if HAS_AVX2:
        function = declare(b.module, "llvm.x86.avx2.pmadd.wd", _WORDS, [x.type] * 2)
        return b.call(function, [x, y])
    wide = ir.VectorType(I32, LINE // 2)
    products = b.mul(b.sext(x, wide), b.sext(y, wide))
    low, high = (shuffle(b, products, products, list(range(k, k + 8))) for k in (0, 8))
    return b.add(low, high)


def _lay_out(source_name: str, name: str, b: Any, args: list[Any]) -> None:
    """`_lay_out_S_T(source, out, count)`: a row of type S for products with rows of type T."""
    source, out, count = args
    corrections = b.add(out, count)
    scales = b.add(corrections, count)

    fmt = FORMATS[source_name]

    def block(k: Any) -> None:
        place = b.add(source, b.mul(k, const(fmt.nbytes)))
        for i, x in enumerate(lines_of(b, source_name, place)):
            line(x, place, b.add(b.mul(k, const(fmt.block)), const(LINE * i)))

    def line(x: Line, place: Any, at: Any) -> None:
        levels = signed_levels(b, x)
        store(b, x.scale(1), b.add(scales, b.sdiv(at, const(8))))
        if _is_wide(name):
            for i, half in enumerate(_wide(b, levels)):
                store(b, half, b.add(out, b.add(b.mul(at, const(2)), const(LINE * i))), 2)
            return
        sums = _dot(b, zeros(_WORDS), ir.Constant(_BYTES, [1] * LINE), levels)
        store(b, levels, b.add(out, at), 1)
        if source_name == "Q8_1" and name in ("Q4_1", "Q5_1"):
            alone = b.insert_element(zeros(_REALS), stored_sum(b, place), ir.Constant(I32, 0))
            store(b, alone, b.add(corrections, at))
        elif _counts_from_zero(name):
            store(b, b.fmul(b.sitofp(sums, _REALS), x.scale(8)), b.add(corrections, at))
        else:
            store(b, b.neg(sums), b.add(corrections, at))

    loop(b, const(0), b.sdiv(count, const(fmt.block)), 1, block)


def stored_sum(b: Any, block: Any) -> Any:
    """The sum of a block of Q8_1 as it is stored, rounded: ggml takes that one for offsets."""
    return lone_half(b, load(b, I16, b.add(block, const(2)), 1))


def _counts_from_zero(name: str) -> bool:
    """Whether levels of this type are without sign, and lines have offsets."""
    return name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")


def _factors(b: Any, lines: tuple[Line, ...]) -> Callable[[Any], list[Any]]:
    """Function of the scale of a row, <8 x float>: what the products of each line are worth."""
    if lines[0].half is None:
        return lambda scale: [b.fmul(line.scale(8), scale) for line in lines]
    word = const(0)  # float16 are converted side by side: that takes as long as for one
    for j, line in enumerate(lines):
        word = b.or_(word, b.shl(b.zext(line.half, I64), const(16 * j)))
    halves = b.bitcast(splat(b, word, 2), ir.VectorType(I16, 8))
    reals = half_to_f32(b, halves, "f16")

    def factors(scale: Any) -> list[Any]:
        all_of = b.fmul(reals, scale)
        parts = ([j] * 4 + [j + 4] * 4 for j in range(len(lines)))
        return [shuffle(b, all_of, all_of, lanes) for lanes in parts]

    return factors


def _add_line(
    b: Any, name: str, line: Line, row: tuple[Any, Any], at: Any, factor: Any, total: Cell
) -> None:
    """Add the products of a line from element `at` on with a row laid out.

    Args:
        row: addresses of its levels and corrections.
        factor: what the products are worth.
    """
    levels, corrections = row
    if _is_wide(name):
        places = [b.add(levels, b.add(b.mul(at, const(2)), const(LINE * i))) for i in range(2)]
        halves = zip(_wide(b, signed_levels(b, line)), places, strict=True)
        low, high = (_pairs(b, w, load(b, _PAIRS, place, 2)) for w, place in halves)
        value = b.add(low, high)
    else:
        first = zeros(_WORDS)
        if line.zero:
            shift = ir.Constant(_WORDS, [line.zero.bit_length() - 1] * 8)
            first = b.shl(load(b, _WORDS, b.add(corrections, at), 4), shift)
        value = _dot(b, first, line.levels, load(b, _BYTES, b.add(levels, at), 1))
    found = multiply_add(b, b.sitofp(value, _REALS), factor, total.get().value)
    if line.offset is not None:
        correction = load(b, _REALS, b.add(corrections, at), 4)
        found = multiply_add(b, correction, line.offset(8), found)
    total.set(Lanes(b, found))


def _dots(rows: int, name: str, b: Any, args: list[Any]) -> None:
    """As in quant_dots, of rows of A that `_lay_out` wrote."""
    block, count = FORMATS[name].block, args[8]

    def sums_of(a_rows: list[Any], columns: list[Any], x_row: Any) -> list[list[Any]]:
        sums = [[Cell(Lanes(b, zeros(_REALS))) for _ in a_rows] for _ in columns]
        rows_of_a = [
            (start, b.add(start, count), b.add(start, b.mul(count, const(2)))) for start in a_rows
        ]

        def add_block(k: Any) -> None:
            found = [lines_at(b, name, w, k) for w in columns]
            for i, lines in enumerate(zip(*found, strict=True)):
                at = b.add(b.mul(k, const(block)), const(LINE * i))
                factors = _factors(b, lines)
                for r, (*row, scales) in enumerate(rows_of_a):
                    scale = load(b, F32, b.add(scales, b.sdiv(at, const(8))), 4)
                    each = zip(lines, factors(splat(b, scale, 8)), sums, strict=True)
                    for line, factor, totals in each:
                        _add_line(b, name, line, tuple(row), at, factor, totals[r])

        def add_blocks(k: Any) -> None:
            fetch_blocks(b, name, columns, x_row, k, together, n_blocks)
            for u in range(together):
                add_block(b.add(k, const(u)))

        together = _UNROLL if block == LINE else 1
        n_blocks = b.sdiv(count, const(block))
        loop(b, const(0), n_blocks, together, add_blocks)
        if together > 1:
            rest = b.sub(n_blocks, b.srem(n_blocks, const(together)))
            loop(b, rest, n_blocks, 1, add_block)
        return [[total.get().value for total in totals] for totals in sums]

    in_groups(b, rows, 1, args, sums_of)


_lay_out_of = {
    (a, name): void_intrinsic(f"quant_lay_out_{a}_{name}", 3, partial(_lay_out, a, name))
    for a, name in product(ROUNDED, FORMATS)
}
_dots_of = {
    (rows, name): void_intrinsic(f"quant_levels{rows}_{name}", 10, partial(_dots, rows, name))
    for rows, name in product((1, ROWS), FORMATS)
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


_L = LayOutRecord(*range(len(LayOutRecord._fields)))  # word numbers
lay_out: Any = None  # what a Kernel binds


def lay_out_rows(record, begin, end, scratch):
    """Chunks are rows of A, one after the other in the output."""
    r = i64_array(record, len(_L))
    for chunk in range(begin, end):
        batch, row = chunk // r[_L.rows], chunk % r[_L.rows]
        b0, b1 = batch // r[_L.batch1], batch % r[_L.batch1]
        a = r[_L.a] + b0 * r[_L.a_b0] + b1 * r[_L.a_b1] + row * r[_L.a_row]
        lay_out(a, r[_L.out] + chunk * r[_L.out_row], r[_L.inner])


LAY_OUT = {
    pair: Kernel(lay_out_rows, "_".join(pair), lay_out=function)
    for pair, function in _lay_out_of.items()
}
LEVEL_DOTS = {
    name: Kernel(
        dots,
        f"levels_{name}",
        dots_one=_dots_of[1, name],
        dots_four=_dots_of[ROWS, name],
    )
    for name in FORMATS
}
