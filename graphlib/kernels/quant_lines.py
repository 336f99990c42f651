"""How the blocks of quantised types are read: lines of 32 levels with their scales, as LLVM IR.

Every format comes down to the same thing, 32 neighbouring elements at a time: a byte each, and a
scale (and an offset) for all of them or for either half. What is made of a line, float32 numbers,
products with a vector, or integer dot products, is the business of the kernels that read them.
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
    load,
    lone_half,
    shuffle,
    splat,
)

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


def lines_of(b: Any, name: str, block: Any) -> list[Line]:
    """The lines of the block of format `name` at address `block`."""
    return _READERS[name](b, block)


def _bytes(b: Any, block: Any, at: int, count: int) -> Any:
    return load(b, ir.VectorType(I8, count), b.add(block, const(at)), 1)


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _low(b: Any, x: Any, mask: int = 15) -> Any:
    return b.and_(x, _all(x.type, mask))


def _shifted(b: Any, x: Any, bits: int) -> Any:
    """Bytes moved right; left for negative `bits`."""
    if bits < 0:
        return b.shl(x, _all(x.type, -bits))
    return b.lshr(x, _all(x.type, bits)) if bits else x


def _nibbles(b: Any, x: Any) -> Any:
    """Bytes as twice as many numbers of four bits: the low halves first."""
    if x.type.count == 16 and HAS_AVX2:
        twice = b.bitcast(shuffle(b, x, x, [*range(16), *range(16)]), ir.VectorType(I32, 8))
        moved = b.lshr(twice, ir.Constant(twice.type, [0] * 4 + [4] * 4))
        return _low(b, b.bitcast(moved, ir.VectorType(I8, 32)))
    return shuffle(b, _low(b, x), _shifted(b, x, 4), list(range(2 * x.type.count)))


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


def _halves(b: Any, values: Any, first: int, second: int) -> Lanes:
    """Lanes `first` and `second` of a vector, half of the result each."""
    return lambda n: shuffle(b, values, values, [first] * (n // 2) + [second] * (n // 2))


def _scaled(b: Any, steps: Any, unit: Any) -> Any:
    """Bytes with a sign, times a float32."""
    n = steps.type.count
    real = b.sitofp(b.sext(steps, ir.VectorType(I32, n)), ir.VectorType(F32, n))
    return b.fmul(real, splat(b, unit, n))


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


def _q2_k(b: Any, block: Any) -> list[Line]:
    steps = _bytes(b, block, 0, 16)
    scales = _scaled(b, _low(b, steps), _half(b, block, 80))
    offsets = b.fneg(_scaled(b, _shifted(b, steps, 4), _half(b, block, 82)))
    lines = []
    for part in range(2):
        fields = _bytes(b, block, 16 + 32 * part, 32)
        for k in range(4):
            at = 8 * part + 2 * k
            levels = _low(b, _shifted(b, fields, 2 * k), 3)
            halves = [_halves(b, values, at, at + 1) for values in (scales, offsets)]
            lines.append(Line(levels, 0, *halves))
    return lines


def _q3_k(b: Any, block: Any) -> list[Line]:
    low, high = _nibbles(b, _bytes(b, block, 96, 8)), _bytes(b, block, 104, 4)
    moved = b.lshr(
        shuffle(b, high, high, list(range(4)) * 4),
        ir.Constant(ir.VectorType(I8, 16), [2 * (k // 4) for k in range(16)]),
    )
    steps = b.or_(low, _shifted(b, _low(b, moved, 3), -4))
    steps = b.sub(steps, _all(steps.type, 32))
    scales = _scaled(b, steps, _half(b, block, 108))
    third = _bytes(b, block, 0, 32)
    lines = []
    for part in range(2):
        fields = _bytes(b, block, 32 + 32 * part, 32)
        for k in range(4):
            bit = _shifted(b, _low(b, _shifted(b, third, 4 * part + k), 1), -2)
            levels = b.or_(_low(b, _shifted(b, fields, 2 * k), 3), bit)
            at = 8 * part + 2 * k
            lines.append(Line(levels, 4, _halves(b, scales, at, at + 1)))
    return lines


def _six_bits(b: Any, block: Any) -> tuple[Any, Any]:
    """Scales and offsets of the eight groups of Q4_K and Q5_K, as <8 x float> each."""
    eight, four = _bytes(b, block, 4, 8), _bytes(b, block, 12, 4)
    low = _low(b, eight, 63)  # four scales, four minima
    high = b.or_(_nibbles(b, four), _shifted(b, _shifted(b, eight, 6), -4))
    steps = [shuffle(b, low, high, [*range(k, k + 4), *range(8 + k, 12 + k)]) for k in (0, 4)]
    scales = _scaled(b, steps[0], _half(b, block, 0))
    return scales, b.fneg(_scaled(b, steps[1], _half(b, block, 2)))


def _q4_k(b: Any, block: Any) -> list[Line]:
    scales, offsets = _six_bits(b, block)
    lines = []
    for part in range(4):
        fields = _bytes(b, block, 16 + 32 * part, 32)
        for k, levels in enumerate((_low(b, fields), _shifted(b, fields, 4))):
            at = 2 * part + k
            lines.append(Line(levels, 0, _halves(b, scales, at, at), _halves(b, offsets, at, at)))
    return lines


def _q5_k(b: Any, block: Any) -> list[Line]:
    scales, offsets = _six_bits(b, block)
    fifth = _bytes(b, block, 16, 32)
    lines = []
    for part in range(4):
        fields = _bytes(b, block, 48 + 32 * part, 32)
        for k, four in enumerate((_low(b, fields), _shifted(b, fields, 4))):
            at = 2 * part + k
            bit = _shifted(b, _low(b, _shifted(b, fifth, at), 1), -4)
            halves = [_halves(b, values, at, at) for values in (scales, offsets)]
            lines.append(Line(b.or_(four, bit), 0, *halves))
    return lines


def _q6_k(b: Any, block: Any) -> list[Line]:
    scales = _scaled(b, _bytes(b, block, 192, 16), _half(b, block, 208))
    lines = []
    for part in range(2):
        fields = [_bytes(b, block, 64 * part + 32 * k, 32) for k in range(2)]
        top = _bytes(b, block, 128 + 32 * part, 32)
        for k in range(4):
            four = _low(b, _shifted(b, fields[k % 2], 4 * (k // 2)))
            bits = _shifted(b, _low(b, _shifted(b, top, 2 * k), 3), -4)
            at = 8 * part + 2 * k
            lines.append(Line(b.or_(four, bits), 32, _halves(b, scales, at, at + 1)))
    return lines


def _q8_k(b: Any, block: Any) -> list[Line]:
    scale = _everywhere(b, load(b, F32, block, 1))
    eight = [_bytes(b, block, 4 + LINE * k, LINE) for k in range(8)]
    return [Line(b.xor(x, _all(x.type, -128)), 128, scale) for x in eight]


_READERS: dict[str, Callable[[Any, Any], list[Line]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q8_1": _q8_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q8_K": _q8_k,
}


def signed_levels(b: Any, line: Line) -> Any:
    """Levels counted from zero, <32 x i8>."""
    return b.sub(line.levels, _all(line.levels.type, line.zero)) if line.zero else line.levels


def numbers(b: Any, line: Line) -> Any:
    """A line as <32 x float>."""
    levels = b.sext(signed_levels(b, line), ir.VectorType(I32, LINE))
    value = b.fmul(b.sitofp(levels, ir.VectorType(F32, LINE)), line.scale(LINE))
    return value if line.offset is None else b.fadd(value, line.offset(LINE))
