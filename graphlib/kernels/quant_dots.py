"""Matrix multiplication for few rows of A and a quantised B: each block of B is read once.

Levels become float32 in registers and meet A there: nothing but their scales and the order of
the sums is rounded, so this is the product with the matrix that the blocks stand for.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_dots import COLUMNS, ROWS, dots, finish, starts
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.quant_lines import LINE, Line, lines_of, numbers
from yupana.graphlib.kernels.vector import (
    LANES,
    REGISTERS,
    const,
    load,
    loop,
    multiply_add,
    prefetch,
    vector,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.quants import FORMATS

SumsOf = Callable[[list[Any], list[Any], Any], list[list[Any]]]
_FETCHED = 64  # bytes that come from memory together


def _dots(rows: int, name: str, b: Any, args: list[Any]) -> None:
    """Dot products of `rows` rows with four rows of blocks; see `_dots_of`."""
    block, kind = FORMATS[name].block, vector(LINE)

    def sums_of(a_rows: list[Any], columns: list[Any], ahead: Any) -> list[list[Any]]:
        sums = [[Cell(Lanes(b, zeros(kind))) for _ in a_rows] for _ in columns]

        def add_block(k: Any) -> None:
            first = b.mul(k, const(4 * block))
            found = [lines_at(b, name, w, ahead, k) for w in columns]
            for i, lines in enumerate(zip(*found, strict=True)):
                at = b.add(first, const(4 * LINE * i))
                left = [load(b, kind, b.add(start, at), 4) for start in a_rows]
                for line, totals in zip(lines, sums, strict=True):
                    value = numbers(b, line)
                    for x, total in zip(left, totals, strict=True):
                        total.set(Lanes(b, multiply_add(b, x, value, total.get().value)))

        loop(b, const(0), b.sdiv(args[8], const(block)), 1, add_block)
        return [[total.get().value for total in totals] for totals in sums]

    in_groups(b, rows, LINE // LANES, args, sums_of)


def in_groups(b: Any, rows: int, registers: int, args: list[Any], sums_of: SumsOf) -> None:
    """Write what `sums_of` finds, for as many columns at a time as there are registers.

    Args:
        registers: that a sum takes.
        sums_of: gives the lanes' sums of each column with each row, from the addresses of rows
            and columns and the distance to the columns to come.
    """
    a_rows, columns = starts(b, rows, args)
    ahead = b.mul(args[3], const(COLUMNS))
    each = COLUMNS if rows * COLUMNS * registers <= REGISTERS // 2 else 1
    totals = []
    for j in range(0, COLUMNS, each):
        totals += sums_of(a_rows, columns[j : j + each], ahead)
    finish(b, totals, args)


def lines_at(b: Any, name: str, w: Any, ahead: Any, k: Any) -> list[Line]:
    """The lines of block `k` of the row at `w`; those `ahead` are fetched meanwhile."""
    nbytes = FORMATS[name].nbytes
    at = b.add(w, b.mul(k, const(nbytes)))
    for near in range(0, nbytes, _FETCHED):  # the hardware follows several streams badly
        prefetch(b, b.add(b.add(at, ahead), const(near)))
    return lines_of(b, name, at)


# The dot products of `gemm_dots.dots` with rows of blocks of type T.
_dots_of = {
    (rows, name): void_intrinsic(f"quant_dots{rows}_{name}", 10, partial(_dots, rows, name))
    for rows, name in product((1, ROWS), FORMATS)
}
QUANT_DOTS = {
    name: Kernel(dots, name, dots_one=_dots_of[1, name], dots_four=_dots_of[ROWS, name])
    for name in FORMATS
}
