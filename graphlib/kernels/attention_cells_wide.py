"""Attention to a cache of keys and values in float64, in plain loops: for tests."""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from yupana.graphlib.kernels.blocks import View, head_words
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import (
    call_convert,
    f32_array,
    f64_array,
    f64_words,
    i32_array,
    i64_array,
)
from yupana.graphlib.kernels.quant_copy import name_of
from yupana.graphlib.kernels.quant_rows import LOAD
from yupana.graphlib.kernels.step import Step, float_word
from yupana.graphlib.kernels.word_numbers import word_numbers


class WideRecord(NamedTuple):
    """Record of `attend_cells_wide`; chunk = (row, head of q). Strides are in bytes."""

    load: int
    q: int
    q_t: int
    q_h: int
    q_k: int
    q_code: int
    k: int
    k_s: int
    k_n: int
    k_g: int
    k_k: int
    k_code: int
    k_blocks: int  # function that loads a quantised row; 0: not quantised
    v: int
    v_s: int
    v_n: int
    v_g: int
    v_v: int
    v_code: int
    v_blocks: int
    y: int
    y_t: int
    y_h: int
    y_v: int
    cells: int
    cells_t: int
    n_seq: int
    n_cells: int
    heads: int
    group: int
    width: int
    values: int
    scale: int


R = word_numbers(WideRecord)  # word numbers


def wide_steps(q: View, k: View, v: View, cells: View, y: View, scale: float) -> list[Step]:
    """The step that computes `y` (T, H, V) f64; operands as in kernels/attention_cells.py."""
    (rows, heads, width), (n_seq, n_cells, kv_heads, values) = q.shape, v.shape
    words = [head_words(wide=True)[0], q.address, *q.strides, q.code]
    for x in (k, v):
        name = name_of(x.code)
        words += [x.address, *x.strides, x.code, LOAD[name].address if name else 0]
    words += [y.address, *y.strides, cells.address, *cells.strides]
    words += [n_seq, n_cells, heads, heads // kv_heads, width, values, float_word(scale)]
    ns = float(rows * heads * n_cells * (width + values))
    return [
        Step(_ATTEND, WideRecord(*words), rows * heads, ns, 8 * (n_cells + 3 * width + 2 * values))
    ]


@register_jitable
def _load(plain, blocks, address, step, code, n, out, spare):
    """`n` elements as float64 at `out`; quantised ones come by way of float32."""
    if blocks == 0:
        call_convert(plain, address, step, code, n, out)
    else:
        call_convert(blocks, address, step, code, n, spare)
        numbers, wide = f32_array(spare, n), f64_array(out, n)
        for i in range(n):
            wide[i] = numbers[i]


def attend_cells_wide(record, begin, end, scratch):
    """Chunks are (row, head of q)."""
    r = i64_array(record, R.n_words)
    scale = f64_words(record + 8 * R.scale, 1)[0]
    n_cells, width, values = r[R.n_cells], r[R.width], r[R.values]
    p, a = f64_array(scratch, n_cells), f64_array(scratch + 8 * n_cells, width)
    k_at = scratch + 8 * (n_cells + width)
    v_at = k_at + 8 * width
    b, c = f64_array(k_at, width), f64_array(v_at, values)
    spare = v_at + 8 * values
    for chunk in range(begin, end):
        t, h = chunk // r[R.heads], chunk % r[R.heads]
        cell = i32_array(r[R.cells] + t * r[R.cells_t], 1)[0]
        y = f64_array(r[R.y] + t * r[R.y_t] + h * r[R.y_h], values)
        y[:] = 0
        if cell < 0 or cell >= r[R.n_seq] * n_cells:
            continue
        seq, seen, g = cell // n_cells, cell % n_cells + 1, h // r[R.group]
        q = r[R.q] + t * r[R.q_t] + h * r[R.q_h]
        call_convert(r[R.load], q, r[R.q_k], r[R.q_code], width, scratch + 8 * n_cells)
        largest = -np.inf
        for n in range(seen):
            k = r[R.k] + seq * r[R.k_s] + n * r[R.k_n] + g * r[R.k_g]
            _load(r[R.load], r[R.k_blocks], k, r[R.k_k], r[R.k_code], width, k_at, spare)
            p[n] = scale * (a * b).sum()
            largest = max(largest, p[n])
        total = 0.0
        for n in range(seen):
            p[n] = np.exp(p[n] - largest)
            total += p[n]
        for n in range(seen):
            v = r[R.v] + seq * r[R.v_s] + n * r[R.v_n] + g * r[R.v_g]
            _load(r[R.load], r[R.v_blocks], v, r[R.v_v], r[R.v_code], values, v_at, spare)
            for d in range(values):
                y[d] += p[n] / total * c[d]


_ATTEND = Kernel(attend_cells_wide)
