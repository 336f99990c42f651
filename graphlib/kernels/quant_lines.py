"""How the blocks of quantised types are read: lines of 32 levels with their scales, as LLVM IR.

Every format comes down to the same thing, 32 neighbouring elements at a time: a byte each, and a
scale (and an offset) for all of them or for either half. Scales of most K types are whole numbers
of a unit: who multiplies integers takes the `Block` of eight such lines as it is. What is made of
a line, float32 numbers, products with a vector, or integer dot products, is the business of the
kernels that read them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.vector import (
    F32,
    HAS_AVX2,
    I16,
    I32,
    const,
    declare,
    load,
    lone_half,
    loop,
    shuffle,
    splat,
)
from yupana.graphlib.quants import FORMATS
from yupana.graphlib.quants_iq import LEVELS

I8 = ir.IntType(8)
LINE = 32  # elements

Lanes = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Line:
    """32 elements: (level - zero) * scale + offset, one product and one sum, each rounded.

    `scale(n)` and `offset(n)` give vectors of n lanes: the value for elements 0 to 15 in the
    first half, that for elements 16 to 31 in the second.
    """

    levels: Any  # <32 x i8>, without sign
    zero: int
    scale: Lanes
    offset: Lanes | None = None
    half: Any = None  # the 16 bits of the scale, where it is one float16 for all elements


@dataclass(frozen=True, slots=True)
class Block:
    """Eight lines whose scales are whole numbers of one unit, a scale for either half of a line.

    An element is (level - zero) * scale * unit + low * low_unit.
    """

    levels: list[Any]  # <32 x i8> each, without sign
    zero: int
    scales: Any  # <16 x i8>, with sign
    unit: Any  # float32
    lows: Any = None  # <16 x i8>, of those types that have offsets
    low_unit: Any = None

    def lines(self, b: Any) -> list[Line]:
        """The lines, with scales and offsets as float32."""
        scales = _halves(b, self.scales, self.unit)
        offsets = (
            _halves(b, self.lows, self.low_unit) if self.lows is not None else [None] * len(scales)
        )
        each = zip(self.levels, scales, offsets, strict=True)
        return [Line(levels, self.zero, scale, offset) for levels, scale, offset in each]


HALVES = 16  # of the lines of a block
_LINE_OF_HALF = [half // 2 for half in range(HALVES)]


def lines_of(b: Any, name: str, block: Any) -> list[Line]:
    """The lines of the block of format `name` at address `block`."""
    if name in BLOCKS:
        return BLOCKS[name](b, block).lines(b)
    return _READERS[name](b, block)


def _halves(b: Any, steps: Any, unit: Any) -> list[Lanes]:
    """Bytes with a sign, times a float32, two for each line."""
    real = b.sitofp(b.sext(steps, ir.VectorType(I32, HALVES)), ir.VectorType(F32, HALVES))
    values = b.fmul(real, splat(b, unit, HALVES))

    def lanes_of(first: int) -> Lanes:
        return lambda n: shuffle(b, values, values, [first] * (n // 2) + [first + 1] * (n // 2))

    return [lanes_of(first) for first in range(0, HALVES, 2)]


def _bytes(b: Any, block: Any, at: int, count: int) -> Any:
    return load(b, ir.VectorType(I8, count), b.add(block, const(at)), 1)


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _bits(b: Any, x: Any, start: int, count: int, to: int = 0) -> Any:
    """Of every byte the `count` bits from `start` on, moved to `to`.

    Processors shift words of 16 bits, not bytes: what crosses over is masked with the rest.
    """
    words = ir.VectorType(I16, x.type.count // 2)
    distance = ir.Constant(words, [abs(start - to)] * words.count)
    moved = b.bitcast(x, words)
    moved = b.lshr(moved, distance) if start > to else b.shl(moved, distance)
    return b.and_(b.bitcast(moved, x.type), _all(x.type, (1 << count) - 1 << to))


def _nibbles(b: Any, x: Any) -> Any:
    """Bytes as twice as many numbers of four bits: the low halves first."""
    if x.type.count == 16 and HAS_AVX2:
        twice = b.bitcast(shuffle(b, x, x, [*range(16), *range(16)]), ir.VectorType(I32, 8))
        moved = b.lshr(twice, ir.Constant(twice.type, [0] * 4 + [4] * 4))
        return _bits(b, b.bitcast(moved, ir.VectorType(I8, 32)), 0, 4)
    return shuffle(b, _bits(b, x, 0, 4), _bits(b, x, 4, 4), list(range(2 * x.type.count)))


def _fifth(b: Any, block: Any, at: int) -> Any:
    """32 bits as 16 or 0 in 32 bytes."""
    mask = b.bitcast(load(b, I32, b.add(block, const(at)), 1), ir.VectorType(ir.IntType(1), 32))
    kind = ir.VectorType(I8, 32)
    return b.select(mask, _all(kind, 16), _all(kind, 0))


def _half(b: Any, block: Any, at: int) -> Any:
    """The float16 at byte `at` as float32."""
    return lone_half(b, load(b, I16, b.add(block, const(at)), 1))


def _line(b: Any, block: Any, levels: Any, zero: int, offset: Any = None) -> list[Line]:
    """The one line of a block that begins with its scale."""
    half = load(b, I16, block, 1)
    low = None if offset is None else _everywhere(b, offset)
    return [Line(levels, zero, _everywhere(b, lone_half(b, half)), low, half)]


def _everywhere(b: Any, value: Any) -> Lanes:
    return lambda lanes: splat(b, value, lanes)


def _q4_0(b: Any, block: Any) -> list[Line]:
    return _line(b, block, _nibbles(b, _bytes(b, block, 2, 16)), 8)


def _q4_1(b: Any, block: Any) -> list[Line]:
    return _line(b, block, _nibbles(b, _bytes(b, block, 4, 16)), 0, _half(b, block, 2))


def _q5_0(b: Any, block: Any) -> list[Line]:
    levels = b.or_(_nibbles(b, _bytes(b, block, 6, 16)), _fifth(b, block, 2))
    return _line(b, block, levels, 16)


def _q5_1(b: Any, block: Any) -> list[Line]:
    levels = b.or_(_nibbles(b, _bytes(b, block, 8, 16)), _fifth(b, block, 4))
    return _line(b, block, levels, 0, _half(b, block, 2))


def _q8_0(b: Any, block: Any) -> list[Line]:
    levels = b.xor(_bytes(b, block, 2, 32), _all(ir.VectorType(I8, 32), -128))
    return _line(b, block, levels, 128)


def _q8_1(b: Any, block: Any) -> list[Line]:
    levels = b.xor(_bytes(b, block, 4, 32), _all(ir.VectorType(I8, 32), -128))
    return _line(b, block, levels, 128)


def _q2_k(b: Any, block: Any) -> Block:
    steps, levels = _bytes(b, block, 0, 16), []
    for part in range(2):
        fields = _bytes(b, block, 16 + 32 * part, 32)
        levels += [_bits(b, fields, 2 * k, 2) for k in range(4)]
    low_unit = b.fneg(_half(b, block, 82))
    scales, lows = (_bits(b, steps, start, 4) for start in (0, 4))
    return Block(levels, 0, scales, _half(b, block, 80), lows, low_unit)


def _q3_k(b: Any, block: Any) -> Block:
    low, high = _nibbles(b, _bytes(b, block, 96, 8)), _bytes(b, block, 104, 4)
    moved = b.lshr(
        shuffle(b, high, high, list(range(4)) * 4),
        ir.Constant(ir.VectorType(I8, 16), [2 * (k // 4) for k in range(16)]),
    )
    steps = b.or_(low, _bits(b, moved, 0, 2, to=4))
    third, levels = _bytes(b, block, 0, 32), []
    for part in range(2):
        fields = _bytes(b, block, 32 + 32 * part, 32)
        for k in range(4):
            bit = _bits(b, third, 4 * part + k, 1, to=2)
            levels.append(b.or_(_bits(b, fields, 2 * k, 2), bit))
    return Block(levels, 4, b.sub(steps, _all(steps.type, 32)), _half(b, block, 108))


def _q4_k(b: Any, block: Any) -> Block:
    levels = []
    for part in range(4):
        fields = _bytes(b, block, 16 + 32 * part, 32)
        levels += [_bits(b, fields, start, 4) for start in (0, 4)]
    return _with_minima(b, block, levels)


def _q5_k(b: Any, block: Any) -> Block:
    fifth, levels = _bytes(b, block, 16, 32), []
    for part in range(4):
        fields = _bytes(b, block, 48 + 32 * part, 32)
        for k in range(2):
            bit = _bits(b, fifth, 2 * part + k, 1, to=4)
            levels.append(b.or_(_bits(b, fields, 4 * k, 4), bit))
    return _with_minima(b, block, levels)


def _with_minima(b: Any, block: Any, levels: list[Any]) -> Block:
    """A block of Q4_K or Q5_K: scales and minima in six bits, each for a whole line."""
    eight, four = _bytes(b, block, 4, 8), _bytes(b, block, 12, 4)
    low = _bits(b, eight, 0, 6)  # four scales, four minima
    high = b.or_(_nibbles(b, four), _bits(b, eight, 6, 2, to=4))
    scales, minima = (
        shuffle(b, low, high, [first + 8 * (line // 4) + line % 4 for line in _LINE_OF_HALF])
        for first in (0, 4)
    )
    low_unit = b.fneg(_half(b, block, 2))
    return Block(levels, 0, scales, _half(b, block, 0), minima, low_unit)


def _q6_k(b: Any, block: Any) -> Block:
    levels = []
    for part in range(2):
        fields = [_bytes(b, block, 64 * part + 32 * k, 32) for k in range(2)]
        top = _bytes(b, block, 128 + 32 * part, 32)
        for k in range(4):
            four = _bits(b, fields[k % 2], 4 * (k // 2), 4)
            levels.append(b.or_(four, _bits(b, top, 2 * k, 2, to=4)))
    return Block(levels, 32, _bytes(b, block, 192, 16), _half(b, block, 208))


def _q8_k(b: Any, block: Any) -> list[Line]:
    scale = _everywhere(b, load(b, F32, block, 1))
    eight = [_bytes(b, block, 4 + LINE * k, LINE) for k in range(8)]
    return [Line(b.xor(x, _all(x.type, -128)), 128, scale) for x in eight]


def _iq4_nl(b: Any, block: Any) -> list[Line]:
    return _line(b, block, _listed(b, _bytes(b, block, 2, 16)), 128)


def _iq4_xs(b: Any, block: Any) -> list[Line]:
    low, pairs = _nibbles(b, _bytes(b, block, 4, 4)), ir.VectorType(I16, 8)
    word = splat(b, load(b, I16, b.add(block, const(2)), 1), 8)
    high = b.lshr(word, ir.Constant(pairs, list(range(0, 16, 2))))
    high = _bits(b, b.trunc(high, low.type), 0, 2, to=4)
    low = shuffle(b, low, low, [0, 4, 1, 5, 2, 6, 3, 7])
    steps = b.sub(b.or_(low, high), _all(low.type, 32))
    scales = _halves(b, shuffle(b, steps, steps, _LINE_OF_HALF), _half(b, block, 0))
    levels = [_listed(b, _bytes(b, block, 8 + 16 * k, 16)) for k in range(8)]
    return [Line(x, 128, scale) for x, scale in zip(levels, scales, strict=True)]


def _listed(b: Any, fields: Any) -> Any:
    """The levels that 32 numbers of four bits choose, without sign."""
    chosen, levels = _nibbles(b, fields), [128 + level for level in LEVELS]
    kind = chosen.type
    if HAS_AVX2:
        look_up = declare(b.module, "llvm.x86.avx2.pshuf.b", kind, [kind, kind])
        return b.call(look_up, [ir.Constant(kind, levels * 2), chosen])
    found = _all(kind, levels[0])
    for k, level in enumerate(levels[1:], 1):
        found = b.select(b.icmp_unsigned("==", chosen, _all(kind, k)), _all(kind, level), found)
    return found


_READERS: dict[str, Callable[[Any, Any], list[Line]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q8_1": _q8_1,
    "Q8_K": _q8_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
# The types whose blocks are of the kind `Block`.
BLOCKS: dict[str, Callable[[Any, Any], Block]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

OFFSET = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")  # types whose lines have offsets
# What the levels of a type are counted from.
ZEROS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q8_1": 128, "Q3_K": 4, "Q6_K": 32, "Q8_K": 128}
ZEROS |= dict.fromkeys(OFFSET, 0) | dict.fromkeys(("IQ4_NL", "IQ4_XS"), 128)


def each_line(
    b: Any, name: str, row: Any, count: Any, take: Callable[[Line, Any, Any], None]
) -> None:
    """Emit take(line, address of its block, number of its first element) along a row of blocks."""
    fmt = FORMATS[name]

    def block(k: Any) -> None:
        place = b.add(row, b.mul(k, const(fmt.nbytes)))
        for i, line in enumerate(lines_of(b, name, place)):
            take(line, place, b.add(b.mul(k, const(fmt.block)), const(LINE * i)))

    loop(b, const(0), b.sdiv(count, const(fmt.block)), 1, block)


def signed_levels(b: Any, line: Line) -> Any:
    """Levels counted from zero, <32 x i8>."""
    return b.sub(line.levels, _all(line.levels.type, line.zero)) if line.zero else line.levels


def numbers(b: Any, line: Line) -> Any:
    """A line as <32 x float>."""
    levels = b.sext(signed_levels(b, line), ir.VectorType(I32, LINE))
    value = b.fmul(b.sitofp(levels, ir.VectorType(F32, LINE)), line.scale(LINE))
    return value if line.offset is None else b.fadd(value, line.offset(LINE))
