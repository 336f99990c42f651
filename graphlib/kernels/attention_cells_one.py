"""Attention of one row to the keys it sees, which are read once, where they lie.

So a model goes on by one token. The lines are the heads of the row that share a head of the cache.
"""

import numpy as np

from yupana.graphlib.kernels.attention_cells_blocks import KEY_BLOCK, R, halved, packed_values
from yupana.graphlib.kernels.attention_mix import MixRecord
from yupana.graphlib.kernels.attention_parts import OPTIONS
from yupana.graphlib.kernels.attention_rows import HALVE, SOFTEN
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.gemm_dots import DotsRecord
from yupana.graphlib.kernels.pointers import call_kernel, f32_array, i64_pointer
from yupana.graphlib.kernels.word_numbers import word_numbers

MOST_LINES = 16  # beyond, keys are worth packing
_D = word_numbers(DotsRecord)  # word numbers
_M = word_numbers(MixRecord)
_soften, _halve = SOFTEN[False], HALVE


@for_kernels(**OPTIONS)
def attend_one(r, g, seq, t, seen, scratch):
    """Let row `t` see the first `seen` keys of head `g` of a sequence."""
    lines, scores, scores_row = r[R.group], scratch + r[R.scores_at], r[R.scores_row]
    q = r[R.q] + t * r[R.q_t] + g * lines * r[R.q_h]
    y = r[R.y] + t * r[R.y_t] + g * lines * r[R.y_h]
    settings, q_line = scratch + r[R.settings_at], r[R.q_h]
    peak_at, total_at, factor_at = scratch + r[R.peaks_at], scratch + r[R.sums_at], settings + 4
    peak, total, factor = f32_array(peak_at, 1), f32_array(total_at, 1), f32_array(factor_at, 1)
    if r[R.half] != 0:
        q, q_line = halved(r, q, q_line, lines, factor, scratch)
    k = r[R.k] + seq * r[R.k_s] + g * r[R.k_g]
    _dots(r, scratch, q, q_line, k, seen, scores)
    for m in range(lines):
        row = scores + m * scores_row
        peak[0], total[0] = -np.inf, 0
        _soften(row, seen, seen, settings, peak_at, total_at, factor_at)
        factor[0] = 1 / total[0]
        if r[R.half] != 0:
            _halve(row, row, seen, factor_at)
        else:
            weights = f32_array(row, seen)
            for p in range(seen):
                weights[p] *= factor[0]
    for p0 in range(0, seen, KEY_BLOCK):
        n = min(KEY_BLOCK, seen - p0)
        v, v_row = r[R.v] + seq * r[R.v_s] + p0 * r[R.v_n] + g * r[R.v_g], r[R.v_n]
        if r[R.v_expands] != 0:
            v, v_row = packed_values(r, seq, g, p0, n, scratch + r[R.values_at])
        _mix(r, scratch, scores + 4 * p0, v, v_row, y, p0 > 0, n)


@for_kernels(**OPTIONS)
def _dots(r, job, q, q_line, k, n, out):
    """out[i, p] = q_i · k_p for the lines of q and `n` keys."""
    d = i64_pointer(job)
    for w in range(_D.n_words):
        d[w] = 0
    d[_D.a], d[_D.a_row] = q, q_line
    d[_D.b], d[_D.b_col] = k, r[R.k_n]
    d[_D.c], d[_D.c_row] = out, r[R.scores_row]
    d[_D.batch1] = d[_D.group0] = d[_D.group1] = 1
    d[_D.rows], d[_D.cols], d[_D.inner], d[_D.cols_block] = r[R.group], n, r[R.width], n
    call_kernel(r[R.dots], job, 0, 1, job)


@for_kernels(**OPTIONS)
def _mix(r, job, weights, v, v_row, y, adds, n):
    """y_i = sum of weight[i, p] · v_p over `n` values, added to what it holds or not."""
    m = i64_pointer(job)
    m[_M.w], m[_M.w_row] = weights, r[R.scores_row]
    m[_M.v], m[_M.v_row] = v, v_row
    m[_M.y], m[_M.y_row] = y, r[R.y_h]
    m[_M.adds], m[_M.rows], m[_M.seen], m[_M.width] = adds, r[R.group], n, r[R.values]
    call_kernel(r[R.mix], job, 0, 1, job)
