"""Matrix multiplication for few rows of A and a quantised B: each block of B is read once.

Levels become float32 in registers and meet A there: nothing but their scales and the order of
the sums is rounded, so this is the product with the matrix that the blocks stand for.
"""

from functools import partial
from itertools import product
from typing import Any

from yupana.graphlib.kernels.columns import ROWS, Ahead, fetch, in_groups
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_dots import dots
from yupana.graphlib.kernels.lanes import Cell, Lanes
from yupana.graphlib.kernels.quant_lines import LINE, Line, lines_of, numbers
from yupana.graphlib.kernels.vector import (
    LANES,
    const,
    load,
    loop,
    multiply_add,
    vector,
    void_intrinsic,
    zeros,
)
from yupana.graphlib.quants import FORMATS


def _dots(rows: int, name: str, b: Any, args: list[Any]) -> None:
    """Dot products of `rows` rows with four rows of blocks; see `_dots_of`."""
    block, kind = FORMATS[name].block, vector(LINE)

    def sums_of(a_rows: list[Any], columns: list[Any], ahead: Ahead) -> list[list[Any]]:
        sums = [[Cell(Lanes(b, zeros(kind))) for _ in a_rows] for _ in columns]

        def add_block(k: Any) -> None:
            first = b.mul(k, const(4 * block))
            fetch_blocks(b, name, columns, ahead, k, 1)
            found = [lines_at(b, name, w, k) for w in columns]
            for i, lines in enumerate(zip(*found, strict=True)):
                at = b.add(first, const(4 * LINE * i))
                left = [load(b, kind, b.add(start, at), 4) for start in a_rows]
                for line, totals in zip(lines, sums, strict=True):
                    value = numbers(b, line)
                    for x, total in zip(left, totals, strict=True):
                        total.set(Lanes(b, multiply_add(b, x, value, total.get().value)))

        n_blocks = b.sdiv(args[8], const(block))
        loop(b, const(0), n_blocks, 1, add_block)
        return [[total.get().value for total in totals] for totals in sums]

    in_groups(b, rows, LINE // LANES, row_bytes(b, name, args[8]), args, sums_of)


def row_bytes(b: Any, name: str, count: Any) -> Any:
    """Bytes of a row of `count` elements."""
    return b.mul(b.sdiv(count, const(FORMATS[name].block)), const(FORMATS[name].nbytes))


def fetch_blocks(b: Any, name: str, columns: list[Any], ahead: Ahead, k: Any, n: int) -> None:
    """Fetch of later columns as many blocks as the `n` from the `k`th on."""
    nbytes = FORMATS[name].nbytes
    fetch(b, columns, ahead, b.mul(k, const(nbytes)), n * nbytes)


def lines_at(b: Any, name: str, w: Any, k: Any) -> list[Line]:
    """The lines of block `k` of the row at `w`."""
    return lines_of(b, name, b.add(w, b.mul(k, const(FORMATS[name].nbytes))))


# The dot products of `gemm_dots.dots` with rows of blocks of type T.
_dots_of = {
    (rows, name): void_intrinsic(f"quant_dots{rows}_{name}", 10, partial(_dots, rows, name))
    for rows, name in product((1, ROWS), FORMATS)
}
QUANT_DOTS = {
    name: Kernel(dots, name, dots_one=_dots_of[1, name], dots_four=_dots_of[ROWS, name])
    for name in FORMATS
}
