"""Attention without the matrix of all scores: soft maximum in passes over blocks of keys.

    y[b, h, t] = sum_s p[t, s] · v[b, h//G, s]
    p[t, :] = softmax(scale · k[b, h//G] q[b, h, t] + mask[b, h, t])

A chunk owns rows of q that share k and v (all heads of a group, or a piece of them) and goes
through the keys block by block, with the largest score and the sum of each row so far. The second
pass makes p anew from the logarithm of the sum that the first has kept. Source: Dao 2023,
"FlashAttention-2", algorithms 1 and 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.graphlib.dtypes import DTYPES
from yupana.graphlib.kernels.attention_parts import (
    JOB_BYTES,
    TILES_OF,
    AttentionRecord,
    R,
    bend,
    keys_of,
    keys_seen,
    multiply_rows,
    next_row,
    pack,
    product,
    settle,
    typed_kernels,
    visible,
)
from yupana.graphlib.kernels.blocks import View, head_words
from yupana.graphlib.kernels.gemm_pack import PACK
from yupana.graphlib.kernels.math import log
from yupana.graphlib.kernels.pointers import i64_pointer
from yupana.graphlib.kernels.softmax import slopes_from
from yupana.graphlib.kernels.step import Step, float_word
from yupana.graphlib.kernels.vector import LANES

_ROW_BLOCK = 16  # causal rows waste half a block of keys each
_KEY_BLOCK = 256  # at most: keys are split evenly
_ENOUGH_CHUNKS = 8  # for a few threads; with fewer heads the rows of one are cut in pieces
_PIECE = 256  # rows at least, or packing the keys anew for each piece would cost too much
FLOPS_PER_NS = 90.0
_PACK = {DTYPES[name].code: kernel for name, kernel in PACK.items()}
# Placeholders of the names that a Kernel binds.
real: Any = None
array: Any = None
attend_block: Any = None
finish_rows: Any = None
soften: Any = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Operands with axes (batch, head, row, element), and how rows see keys.

    `lse` and `g_lse` (None: zeros) have axes (batch, head, row). `mask` is broadcast to
    (B, H, T, S). The results (`y` and `lse`, or dq, dk and dv) are of the type computed in, rows
    without gaps.
    """

    q: View
    k: View
    v: View
    mask: View | None
    y: View
    lse: View
    scale: float
    n_past: int  # -1: every row sees every key
    wide: bool
    max_bias: float = 0.0  # above 0: the mask of each head is multiplied with the head's slope
    cap: float = 0.0  # above 0: scores z become cap · tanh(z / cap) before the mask
    gradients: tuple[View, View | None, View, View, View] | None = None  # g, g_lse; dq, dk, dv

    @property
    def flops(self) -> float:
        """Of one product of all scores."""
        rows, keys = math.prod(self.q.shape[:3]), self.k.shape[2]
        if self.n_past < 0:
            return 2.0 * rows * keys * self.q.shape[3]
        seen = min(self.n_past + self.q.shape[2] / 2, keys)
        return 2.0 * rows * seen * self.q.shape[3]


def make_record(a: Attention, piece: int) -> tuple[AttentionRecord, int]:
    """The record, and the bytes of scratch memory that its places take."""
    load, _, native, size = head_words(a.wide)
    heads, kv_heads = a.q.shape[1], a.k.shape[1]
    rows, keys, width, values = a.q.shape[2], a.k.shape[2], a.q.shape[3], a.v.shape[3]
    row_block = min(_ROW_BLOCK, piece)
    key_blocks = max(-(-keys // _KEY_BLOCK), 1)
    key_block = max(_round_up(-(-keys // key_blocks), LANES), LANES)
    k_wide, v_wide, s_wide = (size * _round_up(n, LANES) for n in (width, values, key_block))
    back = a.gradients is not None
    place = {
        "keys_at": width * s_wide,
        "keys_rows_at": key_block * k_wide * back,
        "values_at": values * s_wide if back else key_block * v_wide,
        "queries_at": row_block * k_wide,
        "grads_at": row_block * v_wide * back,
        "scores_at": row_block * s_wide,
        "slopes_at": row_block * s_wide * back,
        "mixed_at": row_block * v_wide * (not back),
        "mask_at": s_wide,
        "damp_at": s_wide,
        "settings_at": 64,
        "first_at": _round_up(piece * size, 64),
        "second_at": _round_up(piece * size, 64),
        "factor_at": _round_up(row_block * size, 64),
    }
    at, places = _round_up(JOB_BYTES, 64), {}
    for name, nbytes in place.items():
        places[name] = at
        at += nbytes
    head = (load, native, size, TILES_OF[a.wide].address)
    record = AttentionRecord._make(
        (
            *head,
            *_packed_words(a, (a.q, a.k, a.v)),
            *_operand_words(a.mask),
            *_operand_words(a.y),
            *_plain_words(a.lse),
            *_gradient_words(a),
            kv_heads,
            heads // max(kv_heads, 1),
            rows,
            keys,
            width,
            values,
            float_word(a.scale),
            float_word(a.cap),
            float_word(a.max_bias),
            float_word(slopes_from(heads)),
            a.n_past,
            piece,
            row_block,
            key_block,
            k_wide,
            v_wide,
            s_wide,
            *(places[name] for name in AttentionRecord._fields[-len(places) :]),
        )
    )
    return record, at


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _plain_words(view: View) -> list[int]:
    return [view.address, *view.strides]


def _operand_words(view: View | None) -> list[int]:
    return [0] * 6 if view is None else [*_plain_words(view), view.code]


def _packed_words(a: Attention, views: Sequence[View]) -> list[int]:
    words: list[int] = []
    for view in views:
        words += [*_operand_words(view), 0 if a.wide else _PACK[view.code].address]
    return words


def _gradient_words(a: Attention) -> list[int]:
    if a.gradients is None:
        return [0] * 23
    g, g_lse, *results = a.gradients
    words = [*_packed_words(a, [g]), *(_plain_words(g_lse) if g_lse else [0] * 4)]
    for result in results:
        words += _plain_words(result)[:4]
    return words


def attention_steps(a: Attention) -> list[Step]:
    """The step that computes `y` and `lse`."""
    rows = a.q.shape[2] * (a.q.shape[1] // max(a.k.shape[1], 1))
    heads = a.k.shape[0] * a.k.shape[1]
    if heads * rows == 0:
        return []
    pieces = min(-(-_ENOUGH_CHUNKS // heads), max(rows // _PIECE, 1))
    piece = min(_round_up(-(-rows // pieces), _ROW_BLOCK), rows)
    record, scratch = make_record(a, piece)
    chunks = heads * -(-rows // piece)
    flops = a.flops * (1 + a.v.shape[3] / max(a.q.shape[3], 1))
    ns = flops / FLOPS_PER_NS + 200.0 * chunks
    return [Step(_ATTENTION[a.wide], record, chunks, ns, scratch)]


def attention(record, begin, end, scratch):
    """Chunks are ((b, head of k), piece of the rows of its group)."""
    r = i64_pointer(record)
    all_rows, values = r[R.group] * r[R.rows], r[R.values]
    pieces = (all_rows + r[R.piece] - 1) // r[R.piece]
    keys_place, values_place = scratch + r[R.keys_at], scratch + r[R.values_at]
    peaks = array(scratch + r[R.first_at], r[R.piece])
    sums = array(scratch + r[R.second_at], r[R.piece])
    settle(r, record, array(scratch + r[R.settings_at], 2))
    for chunk in range(begin, end):
        i0, head = chunk % pieces * r[R.piece], chunk // pieces
        i1 = min(i0 + r[R.piece], all_rows)
        b, h = head // r[R.kv_heads], head % r[R.kv_heads]
        for i in range(i1 - i0):
            peaks[i], sums[i] = real(-np.inf), real(0)
        for j0 in range(0, r[R.keys], r[R.key_block]):
            n = keys_seen(r, i0, i1 - i0, j0, min(r[R.key_block], r[R.keys] - j0))
            k = r[R.k] + b * r[R.k_b] + h * r[R.k_h] + j0 * r[R.k_s]
            f, code, wide = r[R.k_pack], r[R.k_code], r[R.s_wide]
            pack(r, f, code, k, r[R.k_s], r[R.k_k], keys_place, wide, r[R.width], n)
            v, v_step = keys_of(r, R.v, b, h, j0, n, values_place, r[R.v_wide], values)
            for i in range(i0, i1, r[R.row_block]):
                count = min(r[R.row_block], i1 - i)
                attend_block(r, record, b, h, i, count, i - i0, j0, n, v, v_step, scratch)
        finish_rows(r, b, h, i0, i1 - i0, peaks, sums)


def _finish_rows(r, b, h, i0, count, peaks, sums):
    """Divide `count` rows from `i0` by their sums, and store the logarithms of these."""
    for i in range(count):
        peaks[i] += log(sums[i])
    head, t, values = h * r[R.group] + i0 // r[R.rows], i0 % r[R.rows], r[R.values]
    for i in range(count):
        place = r[R.lse] + b * r[R.lse_b] + head * r[R.lse_h] + t * r[R.lse_t]
        array(place, 1)[0] = peaks[i]
        row = array(r[R.y] + b * r[R.y_b] + head * r[R.y_h] + t * r[R.y_t], values)
        if sums[i] == real(0):  # it sees nothing; it may hold anything
            for d in range(values):
                row[d] = real(0)
        else:
            inverse = real(1) / sums[i]
            for d in range(values):
                row[d] *= inverse
        head, t = next_row(r, head, t)


def _attend_block(r, record, b, h, i0, count, at, j0, n, v, v_step, scratch):
    """Let `count` rows from `i0` see the `n` keys packed; `at` is their place in the chunk.

    `v` and `v_step`: where the values of these keys lie.
    """
    n = keys_seen(r, i0, count, j0, n)
    if n == 0:
        return
    s_wide, v_wide, size = r[R.s_wide], r[R.v_wide], r[R.size]
    scores, mixed = scratch + r[R.scores_at], scratch + r[R.mixed_at]
    multiply_rows(r, b, h, i0, count, n, scratch)
    settings, values = scratch + r[R.settings_at], r[R.values]
    peak, total = scratch + r[R.first_at] + at * size, scratch + r[R.second_at] + at * size
    factor, row = scratch + r[R.factor_at], scores
    head, t = h * r[R.group] + i0 // r[R.rows], i0 % r[R.rows]
    damp, mask = scratch + r[R.damp_at], scratch + r[R.mask_at]
    for _ in range(count):
        seen = min(max(visible(r, t) - j0, 0), n)
        if r[R.mask] != 0 or r[R.cap] != 0:
            arrays = (array(row, seen), array(damp, seen), array(mask, seen))
            bend(r, record, b, head, t, j0, *arrays, mask)
        soften(row, seen, n, settings, peak, total, factor)
        row, peak, total, factor = row + s_wide, peak + size, total + size, factor + size
        head, t = next_row(r, head, t)
    to = (mixed, v_wide, False, count, values, n)
    product(r, scratch, scores, s_wide, size, v, v_step, *to)
    factors = array(scratch + r[R.factor_at], count)
    head, t = h * r[R.group] + i0 // r[R.rows], i0 % r[R.rows]
    for i in range(count):
        y = array(r[R.y] + b * r[R.y_b] + head * r[R.y_h] + t * r[R.y_t], values)
        new = array(mixed + i * v_wide, values)
        if j0 == 0:
            for d in range(values):
                y[d] = new[d]
        else:
            for d in range(values):
                y[d] = y[d] * factors[i] + new[d]
        head, t = next_row(r, head, t)


_ATTENTION = typed_kernels(attention, attend_block=_attend_block, finish_rows=_finish_rows)
