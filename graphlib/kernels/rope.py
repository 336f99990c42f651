"""Rotary position embedding: a table of cosines and sines, then pairs of numbers turned by it."""

import math as host_math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.graphlib.kernels.blocks import View, bindings, is_wide
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F32, F64
from yupana.graphlib.kernels.pointers import (
    f32_array,
    f64_array,
    f64_words,
    i32_array,
    i64_array,
)
from yupana.graphlib.kernels.rowwise import Rows
from yupana.graphlib.kernels.step import Step, float_word
from yupana.graphlib.kernels.trigonometry import turned_sine

# Heads that lie next to each other are turned as one row of up to so many elements: a row of its
# own for every head would cost as much as turning it.
_LONGEST_ROW = 128
# pi/2 in two parts; the first has 21 bits, so that its product with a number of turns is exact.
_QUARTER_HIGH = round(host_math.pi / 2 * 2**20) / 2**20
_QUARTER_LOW = host_math.pi / 2 - _QUARTER_HIGH
_PER_QUARTER = 2 / host_math.pi
_ROUNDER = 1.5 * 2.0**52  # adding it leaves no bits behind the point
_HEAD = 10
# Names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None
cosine_and_sine: Any = None
ITEMSIZE: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """By how much pair j of position t is turned: positions[streams[j], t] · frequencies[j].

    Args:
        positions: (T,) or (streams, T) i32.
        frequencies: radians per position.
        streams: row of positions that each pair follows; 0 where there is but one.
        divisors: (pairs,) f32 or f64, by which the frequencies are divided; or None.
        magnitude: what the turned pairs are multiplied with.
    """

    positions: View
    frequencies: Sequence[float]
    streams: Sequence[int]
    divisors: View | None
    magnitude: float


def rope_steps(
    dst: View, src: View, angles: Table, adjacent: bool, workspace: Callable[[int], int]
) -> list[Step]:
    """Turn the pairs of every row (…, T, H, K) of `src` by the angles of the table.

    Pairs are neighbours (`adjacent`), or as far apart as there are pairs; what follows the
    pairs in a row is copied.
    """
    if 0 in dst.shape:
        return []
    wide = is_wide([dst, src])
    heads, width = dst.shape[-2:]
    merged = 1
    if adjacent and 2 * len(angles.frequencies) == width and _is_packed(dst) and _is_packed(src):
        fitting = max(_LONGEST_ROW // width, 1)
        merged = max(m for m in range(1, min(heads, fitting) + 1) if heads % m == 0)
    table = _table(angles, merged, wide, workspace)
    rows = _pairs if adjacent else _halves
    turn = rows.steps(_merge(dst, merged), [_merge(src, merged), table[0]], wide=wide)
    return [table[1], *turn]


def _is_packed(view: View) -> bool:
    """Whether the heads of a position follow each other without gaps."""
    return view.strides[-1] == view.itemsize and (
        view.shape[-2] == 1 or view.strides[-2] == view.shape[-1] * view.itemsize
    )


def _merge(view: View, heads: int) -> View:
    *outer, h, k = view.shape
    strides = (*view.strides[:-2], view.strides[-2] * heads, view.strides[-1])
    shape = (*outer, h // heads, k * heads)
    return View(view.address, shape, strides, view.code, view.itemsize)


def _table(
    angles: Table, repeat: int, wide: bool, workspace: Callable[[int], int]
) -> tuple[View, Step]:
    """The table (T, 1, 2 R pairs), cosines before sines in each row, and the step to fill it."""
    positions, divisors = angles.positions, angles.divisors
    n, size = positions.shape[-1], 8 if wide else 4
    pairs = len(angles.frequencies)
    row = 2 * repeat * pairs
    address = workspace(n * row * size)
    between = positions.strides[0] if len(positions.shape) > 1 else 0
    words = [address, positions.address, positions.strides[-1], between, pairs, repeat]
    words += [float_word(angles.magnitude), 0, 0, 0]
    if divisors is not None:
        words[7:] = [divisors.address, divisors.strides[0], divisors.code]
    record = (*words, *map(float_word, angles.frequencies), *angles.streams)
    step = Step(_TABLES[wide], record, n, n * (20.0 + 8.0 * pairs + row))
    table = View(address, (n, 1, row), (row * size, row * size, size), F64 if wide else F32, size)
    return table, step


def rope_table(record, begin, end, scratch):
    """Chunks are positions."""
    r = i64_array(record, _HEAD)
    pairs, repeat, magnitude = r[4], r[5], f64_words(record, _HEAD)[6]
    frequency = f64_words(record + 8 * _HEAD, pairs)
    stream = i64_array(record + 8 * (_HEAD + pairs), pairs)
    width = pairs * repeat
    for t in range(begin, end):
        cosines = array(r[0] + t * 2 * width * ITEMSIZE, width)
        sines = array(r[0] + (t * 2 + 1) * width * ITEMSIZE, width)
        for j in range(pairs):
            position = float(i32_array(r[1] + t * r[2] + stream[j] * r[3], 1)[0])
            angle = position * frequency[j]
            if r[7]:
                at = r[7] + j * r[8]
                angle /= f64_array(at, 1)[0] if r[9] == F64 else float(f32_array(at, 1)[0])
            cosine, sine = cosine_and_sine(angle)
            cosines[j], sines[j] = real(magnitude) * cosine, real(magnitude) * sine
        for k in range(pairs, width):
            cosines[k] = cosines[k - pairs]
            sines[k] = sines[k - pairs]


def _cosine_and_sine_f32(angle):
    # Quarter turns go in float64: they would take the digits of a float32 with them.
    shifted = np.float64(angle * _PER_QUARTER + _ROUNDER)
    n = shifted - _ROUNDER
    rest = np.float32((angle - n * _QUARTER_HIGH) - n * _QUARTER_LOW)
    quarters = np.int32(shifted.view(np.int64))
    return turned_sine(rest, np.int32(quarters + np.int32(1))), turned_sine(rest, quarters)


def _cosine_and_sine_f64(angle):
    return np.cos(angle), np.sin(angle)


def _turn_pairs(y, x, table, i, p):
    pairs = table.size // 2
    for j in range(pairs):
        a, b, c, s = x[2 * j], x[2 * j + 1], table[j], table[pairs + j]
        y[2 * j] = a * c - b * s
        y[2 * j + 1] = a * s + b * c
    for j in range(2 * pairs, y.size):
        y[j] = x[j]


def _turn_halves(y, x, table, i, p):
    pairs = table.size // 2
    for j in range(pairs):
        a, b, c, s = x[j], x[pairs + j], table[j], table[pairs + j]
        y[j] = a * c - b * s
        y[pairs + j] = a * s + b * c
    for j in range(2 * pairs, y.size):
        y[j] = x[j]


_pairs = Rows(_turn_pairs, 2, ns=0.15)
_halves = Rows(_turn_halves, 2, ns=0.15)
# Without reassociation, which would undo the rounding to whole turns.
_TABLES = {
    wide: Kernel(
        rope_table,
        "f64" if wide else "f32",
        fastmath={"contract", "nsz"},
        cosine_and_sine=_cosine_and_sine_f64 if wide else _cosine_and_sine_f32,
        **bindings(wide),
    )
    for wide in (False, True)
}
