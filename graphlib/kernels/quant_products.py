"""Integer products of lines and blocks with rows of levels, as LLVM IR.

Instructions multiply bytes without sign by bytes with one. Those of AVX2 add two products in 16
bits, too few where levels take all of a byte: there those of both have 16 bits (`is_wide`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.quant_lines import (
    HALVES,
    I8,
    LINE,
    ZEROS,
    Block,
    Line,
    signed_levels,
)
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
    multiply_add,
    shuffle,
    splat,
    vector,
    zeros,
)

ROUNDED = ("Q8_0", "Q8_1", "Q8_K")  # types of A
BYTES, WORDS, REALS = ir.VectorType(I8, LINE), ir.VectorType(I32, 8), vector(8)
PAIRS = ir.VectorType(I16, LINE // 2)
_HAS_VNNI = {"avx512vnni", "avx512vl"} <= FEATURES or "avxvnni" in FEATURES
# How the instruction's intrinsic takes its bytes changed with LLVM 22.
_VNNI_BYTES = BYTES if llvm.llvm_version_info[0] >= 22 else WORDS


@dataclass(frozen=True, slots=True)
class Row:
    """Addresses in a row of A as it is laid out (see quant_levels)."""

    levels: Any
    corrections: Any
    scales: Any

    @classmethod
    def of(cls, b: Any, start: Any, count: Any) -> "Row":
        """The row of `count` elements at `start`."""
        corrections = b.add(start, count)
        return cls(start, corrections, b.add(corrections, count))

    def line(self, b: Any, at: Any) -> Any:
        """Levels from element `at` on, <32 x i8>."""
        return load(b, BYTES, b.add(self.levels, at), 1)

    def scale(self, b: Any, at: Any) -> Any:
        """The scale of the line from element `at` on."""
        return load(b, F32, b.add(self.scales, b.sdiv(at, const(8))), 4)

    def halves(self, b: Any, at: Any) -> Any:
        """The sums of the levels of sixteen halves of lines from element `at` on."""
        return load(b, PAIRS, b.add(self.corrections, b.sdiv(at, const(8))), 2)


def dot(b: Any, first: Any, unsigned: Any, signed: Any) -> Any:
    """first + products of <32 x i8>; four of the eight sums are over the first 16 of them."""
    if _HAS_VNNI:
        kinds = [WORDS, _VNNI_BYTES, _VNNI_BYTES]
        function = declare(b.module, "llvm.x86.avx512.vpdpbusd.256", WORDS, kinds)
        return b.call(
            function, [first, b.bitcast(unsigned, _VNNI_BYTES), b.bitcast(signed, _VNNI_BYTES)]
        )
    ones = ir.Constant(PAIRS, [1] * PAIRS.count)
    if HAS_AVX2:
        return b.add(first, pairs(b, neighbours(b, unsigned, signed), ones))
    halves = []
    for start in (0, LINE // 2):
        x, y = (b.zext(_part(b, unsigned, start), PAIRS), b.sext(_part(b, signed, start), PAIRS))
        found = pairs(b, x, y)
        low, high = (shuffle(b, found, found, list(range(k, k + 4))) for k in (0, 4))
        halves.append(b.add(low, high))
    return b.add(first, shuffle(b, halves[0], halves[1], list(range(8))))


def neighbours(b: Any, unsigned: Any, signed: Any) -> Any:
    """Products of <32 x i8>, those of neighbours added, where 16 bits hold them: <16 x i16>."""
    if HAS_AVX2:
        function = declare(b.module, "llvm.x86.avx2.pmadd.ub.sw", PAIRS, [BYTES] * 2)
        return b.call(function, [unsigned, signed])
    wide = ir.VectorType(I16, LINE)
    products = b.mul(b.zext(unsigned, wide), b.sext(signed, wide))
    even, odd = (shuffle(b, products, products, list(range(k, LINE, 2))) for k in range(2))
    return b.add(even, odd)


def pairs(b: Any, x: Any, y: Any) -> Any:
    """Products of <16 x i16>, some two of them added to each of eight sums."""
    if HAS_AVX2:
        function = declare(b.module, "llvm.x86.avx2.pmadd.wd", WORDS, [x.type] * 2)
        return b.call(function, [x, y])
    wide = ir.VectorType(I32, LINE // 2)
    products = b.mul(b.sext(x, wide), b.sext(y, wide))
    low, high = (shuffle(b, products, products, list(range(k, k + 8))) for k in (0, 8))
    return b.add(low, high)


def _part(b: Any, levels: Any, start: int) -> Any:
    """Half of the levels of a line, <16 x i8>."""
    return shuffle(b, levels, levels, list(range(start, start + LINE // 2)))


def wide(b: Any, levels: Any) -> list[Any]:
    """Levels with a sign as the halves of a line in 16 bits."""
    return [b.sext(_part(b, levels, start), PAIRS) for start in (0, LINE // 2)]


def is_wide(name: str) -> bool:
    """Whether levels of this type are multiplied in 16 bits."""
    return ZEROS[name] == 128 and HAS_AVX2 and not _HAS_VNNI


def factors(b: Any, lines: tuple[Line, ...]) -> Callable[[Any], list[Any]]:
    """Function of the scale of a row, <8 x float>: what the products of each line are worth."""
    if lines[0].half is None:
        return lambda scale: [b.fmul(line.scale(8), scale) for line in lines]
    word = const(0)  # float16 are converted side by side: that takes as long as for one
    for j, line in enumerate(lines):
        word = b.or_(word, b.shl(b.zext(line.half, I64), const(16 * j)))
    halves = b.bitcast(splat(b, word, 2), ir.VectorType(I16, 8))
    reals = half_to_f32(b, halves, "f16")

    def of_scale(scale: Any) -> list[Any]:
        all_of = b.fmul(reals, scale)
        parts = ([j] * 4 + [j + 4] * 4 for j in range(len(lines)))
        return [shuffle(b, all_of, all_of, lanes) for lanes in parts]

    return of_scale


def add_line(b: Any, name: str, line: Line, row: Row, at: Any, factor: Any, total: Cell) -> None:
    """Add the products of a line with a row from element `at` on, each worth `factor`."""
    if is_wide(name):
        places = [b.add(row.levels, b.add(b.mul(at, const(2)), const(LINE * i))) for i in range(2)]
        halves = zip(wide(b, signed_levels(b, line)), places, strict=True)
        low, high = (pairs(b, w, load(b, PAIRS, place, 2)) for w, place in halves)
        value = b.add(low, high)
    else:
        place = b.add(row.corrections, at)
        first = load(b, WORDS, place, 4) if line.zero else zeros(WORDS)
        value = dot(b, first, line.levels, row.line(b, at))
    found = multiply_add(b, b.sitofp(value, REALS), factor, total.get().value)
    if line.offset is not None:
        correction = load(b, REALS, b.add(row.corrections, at), 4)
        found = multiply_add(b, correction, line.offset(8), found)
    total.set(Lanes(b, found))


def add_block(b: Any, block: Block, row: Row, at: Any, total: Cell) -> None:
    """Add the products of a block with a row of one scale from element `at` on.

    Sums of whole numbers times whole scales become float32 once for all lines.
    """
    steps, sums = b.sext(block.scales, PAIRS), row.halves(b, at)
    value = zeros(WORDS)
    for i, levels in enumerate(block.levels):
        step = shuffle(b, steps, steps, [2 * i] * 8 + [2 * i + 1] * 8)
        x = row.line(b, b.add(at, const(LINE * i)))
        value = b.add(value, pairs(b, neighbours(b, levels, x), step))
    if block.zero:
        shift = ir.Constant(WORDS, [block.zero.bit_length() - 1] * WORDS.count)
        value = b.sub(value, b.shl(pairs(b, sums, steps), shift))
    scale = row.scale(b, at)
    worth = splat(b, b.fmul(block.unit, scale), REALS.count)
    found = multiply_add(b, b.sitofp(value, REALS), worth, total.get().value)
    if block.lows is not None:
        low = pairs(b, sums, b.sext(block.lows, PAIRS))
        worth = splat(b, b.fmul(block.low_unit, scale), REALS.count)
        found = multiply_add(b, b.sitofp(low, REALS), worth, found)
    total.set(Lanes(b, found))


assert PAIRS.count == HALVES  # the sums of the halves of a block's lines are one vector
