"""Matrix multiplication of any dtypes and strides, element by element in float64.

For float64 operands, and for results or addends that the fast kernels of `gemm_kernels` do not
write or read: any dtype, any stride.
"""

from typing import NamedTuple

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F64
from yupana.graphlib.kernels.pointers import call_convert, f64_array, i64_array
from yupana.graphlib.kernels.word_numbers import word_numbers


class GeneralRecord(NamedTuple):
    """Record of `general`; chunk = ((b0, b1), row). Conversions and dtype codes of convert.py."""

    load: int
    store: int
    a: int
    a_b0: int
    a_b1: int
    a_row: int
    a_k: int
    a_code: int
    b: int
    b_b0: int
    b_b1: int
    b_col: int
    b_k: int
    b_code: int
    c: int
    c_b0: int
    c_b1: int
    c_row: int
    c_col: int
    c_code: int
    d: int  # 0: nothing to add
    d_b0: int
    d_b1: int
    d_row: int
    d_col: int
    d_code: int
    batch1: int
    group0: int
    group1: int
    rows: int
    cols: int
    inner: int


_G = word_numbers(GeneralRecord)  # word numbers
_WORDS = _G.n_words


def scratch_bytes(cols: int, inner: int) -> int:
    """Scratch memory of `general`: a row of A, a column of B and a row of C, in float64."""
    return 8 * (2 * inner + cols)


def general(record, begin, end, scratch):
    """Chunks are rows of C."""
    r = i64_array(record, _WORDS)
    load, inner, cols = r[_G.load], r[_G.inner], r[_G.cols]
    row = f64_array(scratch, inner)
    column_place = scratch + 8 * inner
    result_place = column_place + 8 * inner
    result = f64_array(result_place, cols)
    for chunk in range(begin, end):
        batch, i = chunk // r[_G.rows], chunk % r[_G.rows]
        b0, b1 = batch // r[_G.batch1], batch % r[_G.batch1]
        g0, g1 = b0 // r[_G.group0], b1 // r[_G.group1]
        a = r[_G.a] + b0 * r[_G.a_b0] + b1 * r[_G.a_b1] + i * r[_G.a_row]
        b = r[_G.b] + g0 * r[_G.b_b0] + g1 * r[_G.b_b1]
        c = r[_G.c] + b0 * r[_G.c_b0] + b1 * r[_G.c_b1] + i * r[_G.c_row]
        call_convert(load, a, r[_G.a_k], r[_G.a_code], inner, scratch)
        if r[_G.d] != 0:
            d = r[_G.d] + b0 * r[_G.d_b0] + b1 * r[_G.d_b1] + i * r[_G.d_row]
            call_convert(load, d, r[_G.d_col], r[_G.d_code], cols, result_place)
        else:
            result[:] = 0.0
        for j in range(cols):
            place = b + j * r[_G.b_col]
            if r[_G.b_code] != F64 or r[_G.b_k] != 8:
                call_convert(load, place, r[_G.b_k], r[_G.b_code], inner, column_place)
                place = column_place
            column = f64_array(place, inner)
            total = 0.0
            for k in range(inner):
                total += row[k] * column[k]
            result[j] += total
        call_convert(r[_G.store], result_place, cols, r[_G.c_code], c, r[_G.c_col])


GENERAL = Kernel(general)
