"""Rows written where an index says, and read back from there.

Where an index names a row twice the later one is written, whichever thread comes first: a table
of owners is made beforehand. Numbers outside the table write nothing.
"""

import math
from collections.abc import Callable

from yupana.graphlib.kernels import quant_copy
from yupana.graphlib.kernels.blocks import (
    HEAD,
    LOAD,
    SIZE,
    STORE,
    View,
    broadcast,
    contiguous_strides,
    head_words,
    is_wide,
    padded,
)
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import call_convert, i32_pointer, i64_array, u8_pointer
from yupana.graphlib.kernels.quant_rows import STORE as STORE_BLOCKS
from yupana.graphlib.kernels.step import Step

# Record of both kernels: address and three strides of the index, address and two batch strides
# of the owners (which have an entry for each row of the table), sizes.
_INDEX, _OWNERS = HEAD, HEAD + 4
_N0, _N1, _M, _TABLE_ROWS = range(HEAD + 7, HEAD + 11)
# For the copies: code, address, three outer strides and last stride of rows and table; columns.
_ROWS, _TABLE, _COLUMNS, _IS_BACK = HEAD + 11, HEAD + 17, HEAD + 23, HEAD + 24
_WORDS = HEAD + 25


def set_rows(table: View, rows: View, index: View, workspace: Callable[[int], int]) -> list[Step]:
    """`table[b0, b1, index[b0, b1, m]] = rows[b0, b1, m]`; the index is broadcast over b0, b1."""
    return _steps(table, rows, index, workspace, False)


def owned_rows(rows: View, table: View, index: View, workspace: Callable[[int], int]) -> list[Step]:
    """The reverse: `rows[b0, b1, m] = table[b0, b1, index[b0, b1, m]]`.

    Zeros where `set_rows` would write nothing, or a later row over it.
    """
    return _steps(table, rows, index, workspace, True)


def _steps(
    table: View, rows: View, index: View, workspace: Callable[[int], int], is_back: bool
) -> list[Step]:
    n0, n1, m, columns = padded(rows.shape, 4, 1)
    batches, n_table = index.shape[:-1], table.shape[-2]
    owners = View(
        workspace(4 * math.prod(batches) * n_table),
        (*batches, 1),
        (*contiguous_strides(batches, 4 * n_table), 4),
        0,
        4,
    )
    if n0 * n1 * m * columns == 0:
        return []
    name = quant_copy.name_of(table.code)  # of a quantised type; rows go there as float32
    head = [*head_words(name is None and is_wide([table, rows]))]
    if name:
        head[STORE] = STORE_BLOCKS[name].address

    def record(outer: tuple[int, ...]) -> list[int]:
        spread = broadcast(index, (*outer, m)), broadcast(owners, (*outer, 1))
        words = [*head, index.address, *padded(spread[0].strides, 3)]
        words += [owners.address, *padded(spread[1].strides, 3)[:2]]
        return [*words, *padded(outer, 2, 1), m, n_table]

    claiming = [*record(batches), *[0] * (_WORDS - _ROWS)]
    copying = record(rows.shape[:-2])
    for view in (rows, table):
        copying += [view.code, view.address, *padded(view.strides, 4)]
    copying += [columns, int(is_back)]
    n_rows, n_lists = n0 * n1 * m, math.prod(batches)
    return [
        Step(_CLAIM, tuple(claiming), n_lists, 2.0 * n_lists * m),
        Step(_COPY, tuple(copying), n_rows, n_rows * (20 + 0.2 * columns), head[SIZE] * columns),
    ]


def claim_rows(record, begin, end, scratch):
    """Chunks are lists of indices; each notes for every row of the table who comes last."""
    r = i64_array(record, _WORDS)
    for chunk in range(begin, end):
        b0, b1 = chunk // r[_N1], chunk % r[_N1]
        index = r[_INDEX] + b0 * r[_INDEX + 1] + b1 * r[_INDEX + 2]
        owners = i32_pointer(r[_OWNERS] + b0 * r[_OWNERS + 1] + b1 * r[_OWNERS + 2])
        for m in range(r[_M]):
            k = i32_pointer(index + m * r[_INDEX + 3])[0]
            if 0 <= k < r[_TABLE_ROWS]:
                owners[k] = m


def copy_rows(record, begin, end, scratch):
    """Chunks are rows."""
    r = i64_array(record, _WORDS)
    n = r[_COLUMNS]
    for chunk in range(begin, end):
        m, batch = chunk % r[_M], chunk // r[_M]
        b0, b1 = batch // r[_N1], batch % r[_N1]
        at = r[_INDEX] + b0 * r[_INDEX + 1] + b1 * r[_INDEX + 2] + m * r[_INDEX + 3]
        k = i32_pointer(at)[0]
        owners = i32_pointer(r[_OWNERS] + b0 * r[_OWNERS + 1] + b1 * r[_OWNERS + 2])
        is_owner = 0 <= k < r[_TABLE_ROWS] and owners[k] == m
        row = r[_ROWS + 1] + b0 * r[_ROWS + 2] + b1 * r[_ROWS + 3] + m * r[_ROWS + 4]
        entry = r[_TABLE + 1] + b0 * r[_TABLE + 2] + b1 * r[_TABLE + 3] + k * r[_TABLE + 4]
        if r[_IS_BACK]:
            if is_owner:
                call_convert(r[LOAD], entry, r[_TABLE + 5], r[_TABLE], n, scratch)
            else:
                zeros = u8_pointer(scratch)
                for i in range(n * r[SIZE]):
                    zeros[i] = 0
            call_convert(r[STORE], scratch, n, r[_ROWS], row, r[_ROWS + 5])
        elif is_owner:
            call_convert(r[LOAD], row, r[_ROWS + 5], r[_ROWS], n, scratch)
            call_convert(r[STORE], scratch, n, r[_TABLE], entry, r[_TABLE + 5])


_CLAIM, _COPY = Kernel(claim_rows), Kernel(copy_rows)
