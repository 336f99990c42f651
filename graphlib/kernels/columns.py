"""What products for few rows of A share: columns of B taken four at a time, where they lie.

Lanes run along k, so the lanes of a sum are added at the end; what later columns hold is fetched
meanwhile.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from yupana.graphlib.kernels.vector import (
    FETCHED,
    REGISTERS,
    const,
    loop,
    mask_below,
    masked_load,
    masked_store,
    prefetch,
    shuffle,
    store,
    vector,
)

ROWS = COLUMNS = 4  # rows of A and columns that are taken together
_AHEAD = 8192  # bytes read before what is fetched is wanted, at least
_LONG = 512  # elements; models with rows so long are larger than the caches that cores share


class Ahead(NamedTuple):
    """How far to fetch ahead of columns."""

    x_row: Any  # bytes from one column to the next
    is_dense: Any  # whether there are no gaps between columns
    distance: Any  # bytes from what is read to what is fetched
    is_far: Any  # whether it comes from memory, not from a cache

    @classmethod
    def of(cls, b: Any, x_row: Any, row_bytes: Any, inner: Any) -> "Ahead":
        """So far that some bytes are read meanwhile, but by whole calls."""
        calls = b.udiv(const(_AHEAD), b.mul(row_bytes, const(COLUMNS)))
        calls = b.select(b.icmp_signed("<", calls, const(1)), const(1), calls)
        return cls(
            x_row,
            b.icmp_signed("==", x_row, row_bytes),
            b.mul(x_row, b.mul(calls, const(COLUMNS))),
            b.icmp_signed(">=", inner, const(_LONG)),
        )


SumsOf = Callable[[list[Any], list[Any], Ahead], list[list[Any]]]


def in_groups(
    b: Any, rows: int, registers: int, row_bytes: Any, args: list[Any], sums_of: SumsOf
) -> None:
    """Write what `sums_of` finds, for as many columns at a time as there are registers.

    Args:
        registers: that a sum takes.
        row_bytes: of a column, gaps between columns not counted.
        sums_of: gives the lanes' sums of each column with each row, from the addresses of rows
            and columns and what is to be fetched for later ones.
    """
    a, a_row, x, x_row, c, c_row, d, d_row, inner, cols = args
    each = COLUMNS
    while each > 1 and rows * each * registers > REGISTERS // 2:
        each //= 2
    ahead = Ahead.of(b, x_row, row_bytes, inner)

    def group(j: Any) -> None:
        along = b.mul(j, const(4))
        there = b.select(b.icmp_signed("!=", d, const(0)), b.add(d, along), d)
        here = [a, a_row, b.add(x, b.mul(x_row, j)), x_row, b.add(c, along), c_row, there, d_row]
        here += [inner, b.sub(cols, j)]
        a_rows, columns = _starts(b, rows, here)
        totals = []
        for k in range(0, COLUMNS, each):
            totals += sums_of(a_rows, columns[k : k + each], ahead)
        _finish(b, totals, here)

    loop(b, const(0), b.add(cols, const(COLUMNS - 1)), COLUMNS, group)


def _starts(b: Any, rows: int, args: list[Any]) -> tuple[list[Any], list[Any]]:
    """Addresses of the rows and of the columns that a call of `_dotsR_T` takes."""
    a, a_row, x, x_row, *_, cols = args
    columns = []
    for j in range(COLUMNS):  # columns that do not exist repeat column 0
        exists = b.icmp_signed("<", const(j), cols)
        columns.append(b.add(x, b.select(exists, b.mul(x_row, const(j)), const(0))))
    return [b.add(a, b.mul(a_row, const(r))) for r in range(rows)], columns


def _finish(b: Any, totals: list[list[Any]], args: list[Any]) -> None:
    """Write the sums of the lanes of `totals`, of each column with each row."""
    c, c_row, d, d_row, _, cols = args[4:]
    mask = mask_below(b, cols, COLUMNS)
    four = vector(COLUMNS)
    for r in range(len(totals[0])):
        result = _sum_lanes(b, [column[r] for column in totals])
        place = b.add(d, b.mul(d_row, const(r)))
        result = with_addend(b, result, d, partial(masked_load, b, four, place, mask, 4))
        to = b.add(c, b.mul(c_row, const(r)))
        with b.if_else(b.icmp_signed(">=", cols, const(COLUMNS))) as (whole, part):
            with whole:
                store(b, result, to)
            with part:  # takes some processors twenty steps
                masked_store(b, result, to, mask)


def _sum_lanes(b: Any, values: list[Any]) -> Any:
    """The sums over the lanes of four vectors, as one vector of four."""
    n = values[0].type.count

    def fold(x: Any, y: Any) -> Any:
        even, odd = list(range(0, 2 * n, 2)), list(range(1, 2 * n, 2))
        return b.fadd(shuffle(b, x, y, even), shuffle(b, x, y, odd))

    total = fold(fold(values[0], values[1]), fold(values[2], values[3]))
    while n > 4:  # n // 4 neighbouring lanes of each of the four are left
        even, odd = list(range(0, n, 2)), list(range(1, n, 2))
        total = b.fadd(shuffle(b, total, total, even), shuffle(b, total, total, odd))
        n //= 2
    return total


def fetch(b: Any, columns: list[Any], ahead: Ahead, done: Any, nbytes: int) -> None:
    """Fetch part of what later calls will read, in the order in which it lies in memory.

    The hardware fetches ahead of a program that reads one stream, not several: columns without
    gaps between them are fetched as if they were one. The nearest cache waits for few lines at a
    time, too few for memory, so what comes from there goes to the next one.

    Args:
        done: bytes of each column that were read.
        nbytes: that are read next.
    """
    apart = b.select(ahead.is_dense, const(nbytes), ahead.x_row)
    done = b.mul(done, b.select(ahead.is_dense, const(len(columns)), const(1)))
    first = b.add(b.add(columns[0], ahead.distance), done)

    def fetch_to(level: int) -> None:
        at = first
        for _ in columns:
            for near in range(0, nbytes, FETCHED):
                prefetch(b, b.add(at, const(near)), level)
            at = b.add(at, apart)

    with b.if_else(ahead.is_far) as (far, near_by):
        with far:
            fetch_to(2)
        with near_by:
            fetch_to(1)


def with_addend(b: Any, value: Any, d: Any, read: Callable[[], Any]) -> Any:
    """value + what `read` loads, or value where d is 0."""
    before = b.block
    added, after = b.append_basic_block("added"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed("!=", d, const(0)), added, after)
    b.position_at_end(added)
    total = b.fadd(value, read())
    b.branch(after)
    b.position_at_end(after)
    result = b.phi(value.type)
    result.add_incoming(value, before)
    result.add_incoming(total, added)
    return result
