"""Copies that exchange rows and columns: squares of a register's width, turned in registers.

A copy element by element reads or writes a cache line for every element it moves. Here memory is
read and written in vectors, in tiles whose lines stay in the first cache meanwhile.
"""

import math
from functools import partial
from typing import Any

from yupana.graphlib.kernels.blocks import View, collapse, padded
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import i64_pointer
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.vector import (
    I16,
    I32,
    LANES,
    const,
    load,
    loop,
    store,
    transpose,
    vector,
    void_intrinsic,
)

_TILE = 64  # rows and columns of a tile: 16 KiB of each side
_TARGET, _SOURCE, _ROWS, _COLS, _N1 = range(5)
_TARGET_STEPS, _SOURCE_STEPS = 5, 8  # along the two outer axes, then from row to row of memory


def steps(dst: View, src: View) -> list[Step]:
    """The step that copies `src` to `dst`, or none where that is no transposition.

    The result's last axis and another one of the source have no gaps; same dtype on both sides,
    of two or four bytes.
    """
    size = math.prod(dst.shape)
    if dst.code != src.code or dst.itemsize not in _KERNELS or src.shape != dst.shape or not size:
        return []
    to, of = collapse([dst, src])
    *outer, last = range(len(to.shape))
    near = [axis for axis in outer if of.strides[axis] == of.itemsize]
    if to.strides[last] != to.itemsize or of.strides[last] == of.itemsize or not near:
        return []
    row = near[-1]
    outer.remove(row)
    rows, cols = to.shape[row], to.shape[last]
    if min(rows, cols) < LANES:
        return []
    n0, n1 = padded([to.shape[axis] for axis in outer], 2, 1)
    record = [to.address, of.address, rows, cols, n1]
    record += [*padded([to.strides[axis] for axis in outer], 2), to.strides[row]]
    record += [*padded([of.strides[axis] for axis in outer], 2), of.strides[last]]
    chunks = n0 * n1 * -(-rows // _TILE) * -(-cols // _TILE)
    return [Step(_KERNELS[dst.itemsize], tuple(record), chunks, 0.3 * size)]


def _turn(element: Any, b: Any, args: list[Any]) -> None:
    """Copy a tile; see `tiles`."""
    source, source_step, target, target_step, rows, cols = args
    kind, size = vector(LANES, element), element.width // 8
    in_squares = [b.and_(n, const(-LANES)) for n in (rows, cols)]

    def place(start: Any, along: Any, step: Any, across: Any) -> Any:
        return b.add(b.add(start, b.mul(along, const(size))), b.mul(across, step))

    def square(r: Any, c: Any) -> None:
        lines = range(LANES)
        places = [place(source, r, source_step, b.add(c, const(k))) for k in lines]
        turned = transpose(b, [load(b, kind, address, size) for address in places])
        for k, value in zip(lines, turned, strict=True):
            store(b, value, place(target, c, target_step, b.add(r, const(k))), size)

    def single(r: Any, c: Any) -> None:
        value = load(b, element, place(source, r, source_step, c), size)
        store(b, value, place(target, c, target_step, r), size)

    zero = const(0)
    loop(b, zero, cols, LANES, lambda c: loop(b, zero, rows, LANES, lambda r: square(r, c)))
    loop(b, in_squares[0], rows, 1, lambda r: loop(b, zero, cols, 1, lambda c: single(r, c)))
    loop(
        b,
        in_squares[1],
        cols,
        1,
        lambda c: loop(b, zero, in_squares[0], 1, lambda r: single(r, c)),
    )


_turn_4 = void_intrinsic("transpose_4", 6, partial(_turn, I32))
_turn_2 = void_intrinsic("transpose_2", 6, partial(_turn, I16))
turn: Any = None  # what a Kernel binds
ITEMSIZE: Any = None


def tiles(record, begin, end, scratch):
    """Chunks are tiles: target[r, c] = source[c, r] for r and c of one, at one outer place."""
    p = i64_pointer(record)
    rows, cols = p[_ROWS], p[_COLS]
    down, across = (rows + _TILE - 1) // _TILE, (cols + _TILE - 1) // _TILE
    for chunk in range(begin, end):
        r, rest = chunk % down * _TILE, chunk // down
        c, place = rest % across * _TILE, rest // across
        i0, i1 = place // p[_N1], place % p[_N1]
        target = p[_TARGET] + i0 * p[_TARGET_STEPS] + i1 * p[_TARGET_STEPS + 1]
        source = p[_SOURCE] + i0 * p[_SOURCE_STEPS] + i1 * p[_SOURCE_STEPS + 1]
        row_step, col_step = p[_TARGET_STEPS + 2], p[_SOURCE_STEPS + 2]
        target += r * row_step + c * ITEMSIZE
        source += c * col_step + r * ITEMSIZE
        turn(source, col_step, target, row_step, min(_TILE, rows - r), min(_TILE, cols - c))


_KERNELS = {
    size: Kernel(tiles, str(8 * size), turn=turn_, ITEMSIZE=size)
    for size, turn_ in ((4, _turn_4), (2, _turn_2))
}
