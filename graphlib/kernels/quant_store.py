"""Blocks of quantised types written from float32, as LLVM IR; the definition is in quants.py."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.lanes import Lanes, Table, read, where, write
from yupana.graphlib.kernels.quant_fit import Weight, fit_range, fit_scale, fit_stepwise, square
from yupana.graphlib.kernels.quant_put import (
    I8,
    at_byte,
    inverse_of,
    put_fields,
    put_fifth,
    put_half,
    put_levels,
    put_six_bits,
)
from yupana.graphlib.kernels.quant_store_iq import put_iq4_nl, put_iq4_xs
from yupana.graphlib.kernels.vector import F32, I16, I32, transpose, vector

_ALMOST_HALF = 0x3EFFFFFF  # bits of the largest float32 below 0.5


def store_block(b: Any, name: str, source: Any, block: Any) -> None:
    """Write the elements at address `source` as a block of format `name`."""
    _WRITERS[name](b, source, block)


def _cut(x: Lanes, highest: int) -> Lanes:
    return x.most(0.0).least(float(highest)).whole().narrow(I8)


def _symmetric(b: Any, source: Any, block: Any, bits: int) -> Lanes:
    """Write the scale; the levels, of which the lowest is the extreme's."""
    x, middle = read(b, F32, 32, source), 1 << (bits - 1)
    d = (x.extreme() + 0.0) / float(-middle)  # no negative zero
    put_half(b, d, block, 0)
    return _cut(x * inverse_of(d) + (middle + 0.5), 2 * middle - 1)


def _between(b: Any, source: Any, block: Any, bits: int) -> Lanes:
    """Write scale and minimum; the levels, from the least element to the largest."""
    x, highest = read(b, F32, 32, source), (1 << bits) - 1
    # of zeros of both signs the first, as a loop over the elements finds it
    low, high = x.first(x.equals(-((-x).largest()))), x.first(x.equals(x.largest()))
    d = (high - low) / float(highest)
    put_half(b, d, block, 0)
    put_half(b, low, block, 2)
    return _cut((x - low) * inverse_of(d) + 0.5, highest)


def _q4_0(b: Any, source: Any, block: Any) -> None:
    put_levels(b, _symmetric(b, source, block, 4), block, 2)


def _q4_1(b: Any, source: Any, block: Any) -> None:
    put_levels(b, _between(b, source, block, 4), block, 4)


def _q5_0(b: Any, source: Any, block: Any) -> None:
    levels = _symmetric(b, source, block, 5)
    put_fifth(b, levels, block, 2)
    put_levels(b, levels, block, 6)


def _q5_1(b: Any, source: Any, block: Any) -> None:
    levels = _between(b, source, block, 5)
    put_fifth(b, levels, block, 4)
    put_levels(b, levels, block, 8)


def _q8_0(b: Any, source: Any, block: Any) -> None:
    x = read(b, F32, 32, source)
    d = x.magnitude().largest() / 127.0
    put_half(b, d, block, 0)
    scaled = x * inverse_of(d)
    # halves away from zero; 0.5 itself would lift the largest number below a half
    away = ((scaled.bits(I32) & -0x80000000) | _ALMOST_HALF).bits(F32)
    moved = scaled + away
    sure = where(moved.equals(moved), moved, moved.like(0.0))  # no NaN
    write(sure.most(-127.0).least(127.0).whole().narrow(I8), at_byte(b, block, 2))


def _q8_1(b: Any, source: Any, block: Any) -> None:
    x = read(b, F32, 32, source)
    largest = x.magnitude().largest()
    d = largest / 127.0
    scaled = x * where(largest.differs(0.0), largest.like(127.0) / largest, largest.like(0.0))
    sure = where(scaled.equals(scaled), scaled, scaled.like(0.0))  # no NaN
    levels = sure.most(-127.0).least(127.0).nearest()
    put_half(b, d, block, 0)
    put_half(b, d.part([0]) * levels.sum().real(), block, 2)
    write(levels.narrow(I8), at_byte(b, block, 4))


def _groups(b: Any, source: Any, size: int) -> Table:
    """256 elements with a group of `size` to a lane."""
    lanes = 256 // size
    table = Table(b, vector(lanes), size)
    for start in range(0, size, lanes):
        rows = [
            read(b, F32, lanes, at_byte(b, source, 4 * (j * size + start))).value
            for j in range(lanes)
        ]
        for i, row in enumerate(transpose(b, rows)):
            table[start + i] = Lanes(b, row)
    return table


def _levels_anew(
    b: Any, x: Table, d: Lanes, minimum: Lanes | None, fitted: Table, bounds: tuple[int, int]
) -> Any:
    """Levels with the scales as stored, in the order of the elements; address of 256 bytes."""
    low, high = bounds
    lanes = x.kind.count
    natural = Table(b, ir.VectorType(I8, 256), 1)
    rows = []
    for i in range(x.size):
        moved = x[i] if minimum is None else x[i] + minimum
        again = (moved / d).nearest().clip(low, high) - low
        rows.append(where(d.differs(0.0), again, fitted[i]).narrow(I8))
    for start in range(0, x.size, lanes):
        square_of = [row.value for row in rows[start : start + lanes]]
        for j, group in enumerate(transpose(b, square_of)):
            write(Lanes(b, group), at_byte(b, natural.address, j * x.size + start))
    return natural.address


def _steps(values: Lanes, top: int) -> tuple[Lanes, Lanes]:
    """Scales as multiples of a unit, 0 to `top`, and that unit."""
    largest = values.largest().most(0.0)
    inverse = where(largest > 0.0, largest.like(float(top)) / largest, largest.like(0.0))
    return (inverse * values).nearest().clip(0, top), largest / float(top)


def _with_minimum(
    b: Any, source: Any, block: Any, plan: tuple[int, int, int, float, int], at: tuple[int, int]
) -> tuple[Any, Lanes, Lanes]:
    """Write both units at bytes `at`; address of the levels, steps of scales and of minima.

    `plan`: bits, bits of the steps, size of a group, and how to search.
    """
    bits, step_bits, size, first, n_steps = plan
    x, highest = _groups(b, source, size), (1 << bits) - 1
    weight = Lanes.magnitude if bits == 2 else _spread_weight(b, x)
    scale, offset, fitted = fit_range(b, x, weight, highest, first, n_steps, bits == 2)
    scales, unit = _steps(scale, (1 << step_bits) - 1)
    minima, unit_of_minima = _steps(offset, (1 << step_bits) - 1)
    d = put_half(b, unit, block, at[0]) * scales.real()
    dmin = put_half(b, unit_of_minima, block, at[1]) * minima.real()
    levels = _levels_anew(b, x, d, dmin, fitted, (0, highest))
    return levels, scales.narrow(I8), minima.narrow(I8)


def _spread_weight(b: Any, x: Table) -> Weight:
    """Magnitude plus the root of the group's mean square."""
    total = square(x[0])
    for i in range(1, x.size):
        total = total + square(x[i])
    mean = (total / float(x.size)).root()
    return lambda element: mean + element.magnitude()


def _q2_k(b: Any, source: Any, block: Any) -> None:
    plan = (2, 4, 16, -0.5, 15)
    levels, scales, minima = _with_minimum(b, source, block, plan, (80, 82))
    write(scales | (minima << 4), block)
    put_fields(b, levels, block, 16, 2, 0)


def _q3_k(b: Any, source: Any, block: Any) -> None:
    x = _groups(b, source, 16)
    scale, fitted = fit_stepwise(b, x, 4)
    extreme = scale.extreme()
    some = extreme.differs(0.0)
    inverse = extreme.like(-32.0) / extreme
    steps = (inverse * scale).nearest().clip(-32, 31) + 32
    steps = where(some, steps, steps.like(0))
    unit = put_half(b, where(some, inverse.like(1.0) / inverse, inverse.like(0.0)), block, 108)
    levels = _levels_anew(b, x, unit * (steps - 32).real(), None, fitted, (-4, 3))
    put_fields(b, levels, block, 0, 1, 2)
    put_fields(b, levels, block, 32, 2, 0)
    six = steps.narrow(I8)
    low, high = six & 15, six >> 4
    eight = [list(range(k, k + 8)) for k in (0, 8)]
    write(low.part(eight[0]) | (low.part(eight[1]) << 4), at_byte(b, block, 96))
    quarters = [high.part(list(range(k, k + 4))) << (k // 2) for k in range(0, 16, 4)]
    write(quarters[0] | quarters[1] | quarters[2] | quarters[3], at_byte(b, block, 104))


def _q4_k(b: Any, source: Any, block: Any) -> None:
    plan = (4, 6, 32, -1.0, 20)
    levels, scales, minima = _with_minimum(b, source, block, plan, (0, 2))
    put_six_bits(b, scales, minima, block)
    put_fields(b, levels, block, 16, 4, 0)


def _q5_k(b: Any, source: Any, block: Any) -> None:
    plan = (5, 6, 32, -0.5, 15)
    levels, scales, minima = _with_minimum(b, source, block, plan, (0, 2))
    put_six_bits(b, scales, minima, block)
    put_fields(b, levels, block, 16, 1, 4)
    put_fields(b, levels, block, 48, 4, 0)


def _q6_k(b: Any, source: Any, block: Any) -> None:
    x = _groups(b, source, 16)
    scale, fitted = fit_scale(b, x, 32)
    extreme = scale.extreme()
    empty = extreme.magnitude() < 1e-15
    inverse = extreme.like(-128.0) / extreme
    steps = (inverse * scale).nearest().least(127)
    steps = where(empty, steps.like(0), steps)
    unit = where(empty, inverse.like(0.0), inverse.like(1.0) / inverse)
    unit = put_half(b, unit, block, 208)
    levels = _levels_anew(b, x, unit * steps.real(), None, fitted, (-32, 31))
    write(steps.narrow(I8), at_byte(b, block, 192))
    for part in range(2):
        lines = [read(b, I8, 32, at_byte(b, levels, 128 * part + 32 * k)) for k in range(4)]
        lines = [where(empty.part([0] * 32), line.like(0), line) for line in lines]
        for k in range(2):
            four = (lines[k] & 15) | (lines[k + 2] << 4)
            write(four, at_byte(b, block, 64 * part + 32 * k))
        tops = [(line >> 4) << (2 * k) for k, line in enumerate(lines)]
        write(tops[0] | tops[1] | tops[2] | tops[3], at_byte(b, block, 128 + 32 * part))


def _q8_k(b: Any, source: Any, block: Any) -> None:
    lines = [read(b, F32, 32, at_byte(b, source, 128 * k)) for k in range(8)]
    lines = [where(x.equals(x), x, x.like(0.0)) for x in lines]  # no NaN
    top = lines[0].magnitude()
    for x in lines[1:]:
        top = top.most(x.magnitude())
    size, extreme = top.largest(), lines[0]
    for x in reversed(lines):  # the first of the largest magnitude
        mask = x.magnitude().equals(size)
        extreme = Lanes(b, b.select(mask.any(), x.first(mask).value, extreme.value))
    some = extreme.differs(0.0)
    inverse = where(some, extreme.like(-127.0) / extreme, extreme.like(0.0))
    unit = where(some, inverse.like(1.0) / inverse, inverse.like(0.0))
    write(unit.part([0]), block)
    for k, x in enumerate(lines):
        levels = (inverse * x).nearest().clip(-128, 127)
        write(levels.narrow(I8), at_byte(b, block, 4 + 32 * k))
        for half in range(2):
            total = levels.part(list(range(16 * half, 16 * half + 16))).sum()
            write(total.narrow(I16), at_byte(b, block, 260 + 4 * k + 2 * half))


_WRITERS: dict[str, Callable[[Any, Any, Any], None]] = {
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
    "IQ4_NL": put_iq4_nl,
    "IQ4_XS": put_iq4_xs,
}
