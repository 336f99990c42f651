"""Gradients of attention, from the logarithm of each row's sum: p is made anew, block by block.

    dv = pᵀ g,  ds = scale · p (g vᵀ - delta),  dq = ds k,  dk = dsᵀ q,  delta[t] = <g[t], y[t]>

with the gradient of the logarithm itself taken from delta. A chunk owns a head of k and v with
all its rows, so that nothing is added across chunks.
"""

from typing import Any

import numpy as np

from yupana.graphlib.kernels.attention import FLOPS_PER_NS, Attention, make_record
from yupana.graphlib.kernels.attention_parts import (
    OPTIONS,
    R,
    bend,
    keys_of,
    keys_seen,
    next_row,
    pack,
    product,
    row_place,
    rows_of,
    settle,
    typed_kernels,
    visible,
)
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import call_convert, i64_pointer
from yupana.graphlib.kernels.step import Step

# Placeholders of the names that a Kernel binds.
real: Any = None
array: Any = None
row_sums: Any = None
differentiate_block: Any = None
differentiate: Any = None


def attention_back_steps(a: Attention) -> list[Step]:
    """The step that computes dq, dk and dv."""
    heads = a.k.shape[0] * a.k.shape[1]
    rows = a.q.shape[2] * (a.q.shape[1] // max(a.k.shape[1], 1))
    if heads == 0:
        return []
    record, scratch = make_record(a, max(rows, 1))
    flops = a.flops * (3 + 2 * a.v.shape[3] / max(a.q.shape[3], 1))
    ns = flops / FLOPS_PER_NS + 200.0 * heads
    return [Step(_BACK[a.wide], record, heads, ns, scratch)]


@for_kernels(**OPTIONS)
def _clear(x):
    for j in range(x.size):
        x[j] = 0


def attention_back(record, begin, end, scratch):
    """Chunks are (b, head of k)."""
    r = i64_pointer(record)
    all_rows, width, values = r[R.group] * r[R.rows], r[R.width], r[R.values]
    keys_place, values_place = scratch + r[R.keys_at], scratch + r[R.values_at]
    s_wide, keys_rows = r[R.s_wide], scratch + r[R.keys_rows_at]
    settle(r, record, array(scratch + r[R.settings_at], 2))
    for chunk in range(begin, end):
        b, h = chunk // r[R.kv_heads], chunk % r[R.kv_heads]
        row_sums(r, b, h, scratch)
        for j0 in range(0, r[R.keys], r[R.key_block]):
            n = min(r[R.key_block], r[R.keys] - j0)
            k = r[R.k] + b * r[R.k_b] + h * r[R.k_h] + j0 * r[R.k_s]
            v = r[R.v] + b * r[R.v_b] + h * r[R.v_h] + j0 * r[R.v_s]
            f, code = r[R.k_pack], r[R.k_code]
            pack(r, f, code, k, r[R.k_s], r[R.k_k], keys_place, s_wide, width, n)
            f, code = r[R.v_pack], r[R.v_code]
            pack(r, f, code, v, r[R.v_s], r[R.v_v], values_place, s_wide, values, n)
            k, k_step = keys_of(r, R.k, b, h, j0, n, keys_rows, r[R.k_wide], width)
            dk = r[R.dk] + b * r[R.dk_b] + h * r[R.dk_h] + j0 * r[R.dk_s]
            dv = r[R.dv] + b * r[R.dv_b] + h * r[R.dv_h] + j0 * r[R.dv_s]
            for j in range(n):
                _clear(array(dk + j * r[R.dk_s], width))
                _clear(array(dv + j * r[R.dv_s], values))
            for i in range(0, all_rows, r[R.row_block]):
                count = min(r[R.row_block], all_rows - i)
                differentiate_block(r, record, b, h, i, count, j0, n, k, k_step, dk, dv, scratch)


@for_kernels(**OPTIONS)
def _dot(x, y):
    """Added in float64: delta is taken from numbers of its size."""
    total = 0.0
    for j in range(x.size):
        total += x[j] * y[j]
    return total


def _row_sums(r, b, h, scratch):
    """For each row the logarithm of its sum, and delta; dq is cleared."""
    rows, values, load = r[R.rows], r[R.values], r[R.load]
    g_place, y_place = scratch + r[R.grads_at], scratch + r[R.values_at]
    for group in range(r[R.group]):
        i0, at = group * rows, group * rows * r[R.size]
        sums_place, delta_place = scratch + r[R.first_at] + at, scratch + r[R.second_at] + at
        sums, delta = array(sums_place, rows), array(delta_place, rows)
        y = row_place(r, R.y, b, h, i0)
        lse, dq = row_place(r, R.lse, b, h, i0), row_place(r, R.dq, b, h, i0)
        call_convert(load, lse, r[R.lse_t], r[R.y_code], rows, sums_place)
        if r[R.g_lse] == 0:
            _clear(delta)
        else:
            lse = row_place(r, R.g_lse, b, h, i0)
            call_convert(load, lse, r[R.g_lse_t], r[R.g_code], rows, delta_place)
        for t in range(rows):
            g, _ = rows_of(r, R.g, b, h, i0 + t, 1, g_place, 0, values)
            if r[R.y_code] == r[R.native]:
                y_place = y
            else:
                call_convert(load, y, r[R.y_v], r[R.y_code], values, y_place)
            delta[t] = _dot(array(y_place, values), array(g, values)) - delta[t]
            if sums[t] == real(-np.inf):  # it sees nothing: there p is 0, not e^(-inf + inf)
                sums[t] = real(np.inf)
            _clear(array(dq, r[R.width]))
            y, dq = y + r[R.y_t], dq + r[R.dq_t]


def _differentiate_block(r, record, b, h, i0, count, j0, n, k, k_step, dk, dv, scratch):
    """Add what `count` rows from `i0` give to dq, and to dk and dv of the `n` keys packed.

    `k` and `k_step`: where these keys lie as rows.
    """
    n = keys_seen(r, i0, count, j0, n)
    if n == 0:
        return
    s_wide, v_wide, k_wide = r[R.s_wide], r[R.v_wide], r[R.k_wide]
    width, values, size = r[R.width], r[R.values], r[R.size]
    scores, slopes = scratch + r[R.scores_at], scratch + r[R.slopes_at]
    out = scratch + r[R.queries_at]
    queries, q_step = rows_of(r, R.q, b, h, i0, count, out, k_wide, width)
    out = scratch + r[R.grads_at]
    grads, g_step = rows_of(r, R.g, b, h, i0, count, out, v_wide, values)
    to = (scores, s_wide, False, count, n, width)
    product(r, scratch, queries, q_step, size, scratch + r[R.keys_at], s_wide, *to)
    to = (slopes, s_wide, False, count, n, values)
    product(r, scratch, grads, g_step, size, scratch + r[R.values_at], s_wide, *to)
    total, delta = scratch + r[R.first_at] + i0 * size, scratch + r[R.second_at] + i0 * size
    row, slope, settings = scores, slopes, scratch + r[R.settings_at]
    head, t = h * r[R.group] + i0 // r[R.rows], i0 % r[R.rows]
    damp, mask = scratch + r[R.damp_at], scratch + r[R.mask_at]
    for _ in range(count):
        seen = min(max(visible(r, t) - j0, 0), n)
        if r[R.mask] != 0 or r[R.cap] != 0:
            arrays = (array(row, seen), array(damp, seen), array(mask, seen))
            bend(r, record, b, head, t, j0, *arrays, mask)
        differentiate(row, slope, seen, n, settings, total, delta)
        if r[R.cap] != 0:
            damped, factors = array(slope, seen), array(damp, seen)
            for j in range(seen):
                damped[j] *= factors[j]
        row, slope, total, delta = row + s_wide, slope + s_wide, total + size, delta + size
        head, t = next_row(r, head, t)
    # Rows of p and ds are columns of what dv and dk sum up.
    to = (dv, r[R.dv_s], True, n, values, count)
    product(r, scratch, scores, size, s_wide, grads, g_step, *to)
    to = (dk, r[R.dk_s], True, n, width, count)
    product(r, scratch, slopes, size, s_wide, queries, q_step, *to)
    i = 0
    while i < count:  # rows may belong to several heads
        some = min(r[R.rows] - (i0 + i) % r[R.rows], count - i)
        to = (row_place(r, R.dq, b, h, i0 + i), r[R.dq_t], True, some, width, n)
        product(r, scratch, slopes + i * s_wide, s_wide, size, k, k_step, *to)
        i += some


_BACK = typed_kernels(attention_back, row_sums=_row_sums, differentiate_block=_differentiate_block)
