"""Attention to a cache of keys and values, of which each row sees as much as its cell says.

    y[t, h] = sum_p softmax(scale · k[s, p, h // group] · q[t, h]) · v[s, p, h // group]

over the positions p from 0 to that of row t, in the sequence s that it belongs to; both are data.
A chunk is a head of the cache and a piece of the rows. Rows that follow each other in one sequence
go through its keys together, block by block (see kernels/attention.py). For few of them keys are
read where they lie; for more they are packed for the tiles of matrix multiplication.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from yupana.graphlib.dtypes import DTYPES, QUANTIZED
from yupana.graphlib.kernels.attention_parts import OPTIONS
from yupana.graphlib.kernels.attention_rows import SOFTEN
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.compiler import FASTMATH, Kernel
from yupana.graphlib.kernels.gemm_dots import DOTS, DotsRecord
from yupana.graphlib.kernels.gemm_kernels import IN_PLACE, TILES, TilesRecord
from yupana.graphlib.kernels.gemm_pack import PACK, call_pack
from yupana.graphlib.kernels.gemm_plan import K_BLOCK
from yupana.graphlib.kernels.pointers import (
    call_convert,
    call_kernel,
    f32_array,
    f64_words,
    i32_array,
    i64_array,
    i64_pointer,
)
from yupana.graphlib.kernels.quant_dots import QUANT_DOTS
from yupana.graphlib.kernels.quant_pack import PACK_BLOCKS
from yupana.graphlib.kernels.quant_rows import LOAD
from yupana.graphlib.kernels.step import Step, float_word
from yupana.graphlib.kernels.vector import LANES

_KEY_BLOCK = 256  # keys gone through at a time
_ROW_BLOCK = 32
_PIECE = 128  # rows of a chunk at most: packing is done anew for each
_FEW = 4  # rows for which packing the keys would cost more than it saves
_FLOPS_PER_NS = 60.0
_NAMES = {dtype.code: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class CellAttention:
    """Operands: q and y (T, H, K or V) f32, k and v (S, N, G, K or V), cells (T,) i32.

    Heads of k and v have no gaps between their elements.
    """

    q: View
    k: View
    v: View
    cells: View
    y: View
    scale: float


class CellsRecord(NamedTuple):
    """Record of `attend_cells`; chunk = (piece of the rows, head of the cache)."""

    tiles: int  # kernel that multiplies blocks
    dots: int  # kernel for few rows; 0: the heads are too narrow for it
    q: int
    q_t: int
    q_h: int
    k: int
    k_s: int
    k_n: int
    k_g: int
    k_size: int  # bytes of an element, or of a block
    k_block: int  # elements of a block, or 1
    k_pack: int
    v: int
    v_s: int
    v_n: int
    v_g: int
    v_pack: int  # 0: read where they lie
    v_load: int  # 0: not quantised
    v_size: int
    y: int
    y_t: int
    y_h: int
    cells: int
    cells_t: int
    n_seq: int  # S
    n_cells: int  # N
    rows: int  # T
    kv_heads: int  # G
    group: int  # heads of q to one of the cache
    width: int  # K
    values: int  # V
    scale: int  # float64
    piece: int
    v_wide: int  # bytes of a row of packed values
    keys_at: int  # places in scratch memory
    values_at: int
    scores_at: int
    peaks_at: int
    sums_at: int
    settings_at: int  # what `_soften` reads, the scale; behind it what it gives back


R = CellsRecord(*range(len(CellsRecord._fields)))  # word numbers
_T = TilesRecord(*range(len(TilesRecord._fields)))
_D = DotsRecord(*range(len(DotsRecord._fields)))
_JOB_BYTES = 8 * max(len(_T), len(_D))  # a record of another kernel, at the start of the scratch
_S_WIDE = 4 * _KEY_BLOCK
_soften = SOFTEN[False]


def cell_attention_steps(a: CellAttention) -> list[Step]:
    """The step that computes `y`."""
    (rows, heads, width), (n_seq, n_cells, kv_heads, values) = a.q.shape, a.v.shape
    if rows * heads * values == 0:
        return []
    group = heads // kv_heads
    v_name, k_name = _NAMES[a.v.code], _NAMES[a.k.code]
    in_place = v_name == "f32" and values % LANES == 0
    piece = min(_PIECE, rows)
    v_wide = 4 * _up(values, LANES)
    sizes = (  # of the places in scratch memory
        width * _S_WIDE,
        0 if in_place else _KEY_BLOCK * v_wide,
        _ROW_BLOCK * _S_WIDE,
        4 * piece * group,
        4 * piece * group,
        8,
    )
    places, at = [], _up(_JOB_BYTES, 64)
    for nbytes in sizes:
        places.append(at)
        at += _up(nbytes, 64)
    words = (
        TILES.address,
        _dots_of(k_name) if width >= LANES else 0,
        *_place(a.q)[:3],
        *_place(a.k)[:4],
        DTYPES[k_name].itemsize,
        DTYPES[k_name].block,
        (PACK_BLOCKS if k_name in QUANTIZED else PACK)[k_name].address,
        *_place(a.v)[:4],
        0 if in_place or v_name in QUANTIZED else PACK[v_name].address,
        LOAD[v_name].address if v_name in QUANTIZED else 0,
        DTYPES[v_name].itemsize,
        *_place(a.y)[:3],
        *_place(a.cells),
        n_seq,
        n_cells,
        rows,
        kv_heads,
        group,
        width,
        values,
        float_word(a.scale),
        piece,
        v_wide,
        *places,
    )
    record = CellsRecord._make(words)
    chunks = kv_heads * -(-rows // piece)
    seen = min(n_cells, 512) / 2  # a guess: the kernel knows how many it sees, the plan does not
    flops = 2.0 * rows * heads * seen * (width + values)
    return [Step(_ATTEND, record, chunks, flops / _FLOPS_PER_NS + 500.0 * chunks, at)]


def _place(view: View) -> list[int]:
    return [view.address, *view.strides]


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _dots_of(name: str) -> int:
    return (QUANT_DOTS if name in QUANTIZED else DOTS)[name].address


def attend_cells(record, begin, end, scratch):
    """Chunks are (piece of the rows, head of the cache)."""
    r = i64_array(record, len(R))
    scale = f64_words(record + 8 * R.scale, 1)[0]
    f32_array(scratch + r[R.settings_at], 1)[0] = np.float32(scale)
    for chunk in range(begin, end):
        g = chunk % r[R.kv_heads]
        i = chunk // r[R.kv_heads] * r[R.piece]
        last = min(i + r[R.piece], r[R.rows])
        while i < last:  # rows that follow each other in one sequence, run by run
            cell = _cell(r, i)
            seq, seen, j = cell // r[R.n_cells], cell % r[R.n_cells] + 1, i + 1
            if cell < 0:
                _clear(r, g, i)
            else:
                while j < last and _cell(r, j) // r[R.n_cells] == seq:
                    seen = max(seen, _cell(r, j) % r[R.n_cells] + 1)
                    j += 1
                _attend_run(r, g, seq, i, j, seen, scratch)
            i = j


@njit(**OPTIONS)
def _cell(r, t):
    """The cell of row `t`; negative where there is none."""
    cell = i32_array(r[R.cells] + t * r[R.cells_t], 1)[0]
    return cell if cell < r[R.n_seq] * r[R.n_cells] else -1


@njit(**OPTIONS)
def _clear(r, g, t):
    """Zeros for a row that sees nothing."""
    for h in range(g * r[R.group], (g + 1) * r[R.group]):
        f32_array(r[R.y] + t * r[R.y_t] + h * r[R.y_h], r[R.values])[:] = 0


@njit(**OPTIONS)
def _attend_run(r, g, seq, first, last, seen, scratch):
    """Rows `first` to `last` of sequence `seq`, of which the furthest sees `seen` keys.

    Lines go through the keys together: rows of one head, or the heads of one row.
    """
    tokens, group = last - first, r[R.group]
    lines, outer = (group, 1) if tokens == 1 else (tokens, group)
    few = lines <= _FEW and r[R.dots] != 0
    for at in range(lines * outer):
        f32_array(scratch + r[R.peaks_at], lines * outer)[at] = -np.inf
        f32_array(scratch + r[R.sums_at], lines * outer)[at] = 0
    for p0 in range(0, seen, _KEY_BLOCK):
        n = min(_KEY_BLOCK, seen - p0)
        k = r[R.k] + seq * r[R.k_s] + p0 * r[R.k_n] + g * r[R.k_g]
        if not few:
            _pack_keys(r, k, n, scratch + r[R.keys_at])
        v, v_row = _packed_values(r, seq, g, p0, n, scratch + r[R.values_at])
        for h in range(outer):
            for i in range(0, lines, _ROW_BLOCK):
                count = min(_ROW_BLOCK, lines - i)
                block = (first, tokens, g * group + h, i, h * lines + i, count)
                _attend_block(r, block, p0, n, few, k, v, v_row, scratch)
    sums = f32_array(scratch + r[R.sums_at], lines * outer)
    for h in range(outer):
        for i in range(lines):
            t, head = _row_of(first, tokens, g * group + h, i)
            y = f32_array(r[R.y] + t * r[R.y_t] + head * r[R.y_h], r[R.values])
            inverse = np.float32(1) / sums[h * lines + i]
            for d in range(r[R.values]):
                y[d] *= inverse


@njit(**OPTIONS)
def _row_of(first, tokens, head, i):
    """Row and head of line `i`: see `_attend_run`."""
    return (first, head + i) if tokens == 1 else (first + i, head)


@njit(**OPTIONS)
def _visible(r, t, p0, n):
    """How many of `n` keys from position `p0` row `t` sees."""
    return min(_cell(r, t) % r[R.n_cells] + 1 - p0, n)


@njit(**OPTIONS)
def _attend_block(r, block, p0, n, few, k, v, v_row, scratch):
    """Let some lines see the keys from `p0`; `block` is what `_attend_run` says of them."""
    first, tokens, head, i0, at, count = block
    most = 0
    for m in range(count):
        most = max(most, _visible(r, _row_of(first, tokens, head, i0 + m)[0], p0, n))
    if most == 0:
        return
    t0, head0 = _row_of(first, tokens, head, i0)
    q_line, y_line = (r[R.q_h], r[R.y_h]) if tokens == 1 else (r[R.q_t], r[R.y_t])
    q, y = r[R.q] + t0 * r[R.q_t] + head0 * r[R.q_h], r[R.y] + t0 * r[R.y_t] + head0 * r[R.y_h]
    scores = scratch + r[R.scores_at]
    if few:
        _dots(r, scratch, q, q_line, k, count, most, scores)
    else:
        keys, to = scratch + r[R.keys_at], (scores, _S_WIDE, False)
        _tiles(r, scratch, q, q_line, keys, _S_WIDE, to, (count, most, r[R.width]))
    settings = scratch + r[R.settings_at]
    factor = f32_array(settings + 4, 1)
    for m in range(count):
        t, _ = _row_of(first, tokens, head, i0 + m)
        seen = max(_visible(r, t, p0, n), 0)
        peak, total = scratch + r[R.peaks_at] + 4 * (at + m), scratch + r[R.sums_at] + 4 * (at + m)
        _soften(scores + m * _S_WIDE, seen, most, settings, peak, total, settings + 4)
        if p0 > 0:
            out = f32_array(y + m * y_line, r[R.values])
            for d in range(r[R.values]):
                out[d] *= factor[0]
    to = (y, y_line, p0 > 0)
    _tiles(r, scratch, scores, _S_WIDE, v, v_row, to, (count, r[R.values], most))


@njit(**OPTIONS)
def _pack_keys(r, k, n, out):
    """out[d, p] = key p's element d, for `n` keys from address `k`."""
    for d in range(0, r[R.width], K_BLOCK):  # blocks are packed so many elements at a time
        source = k + d // r[R.k_block] * r[R.k_size]
        count = min(K_BLOCK, r[R.width] - d)
        for p in range(0, n, LANES):
            to = out + d * _S_WIDE + 4 * p
            call_pack(
                r[R.k_pack],
                source + p * r[R.k_n],
                r[R.k_n],
                r[R.k_size],
                to,
                _S_WIDE,
                count,
                min(LANES, n - p),
            )


@njit(**OPTIONS)
def _packed_values(r, seq, g, p0, n, out):
    """Address and stride of the rows of `n` values from position `p0`, as float32."""
    v = r[R.v] + seq * r[R.v_s] + p0 * r[R.v_n] + g * r[R.v_g]
    if r[R.v_load] != 0:
        for p in range(n):
            at = out + p * r[R.v_wide]
            call_convert(r[R.v_load], v + p * r[R.v_n], r[R.v_size], 0, r[R.values], at)
    elif r[R.v_pack] != 0:
        for d in range(0, r[R.values], LANES):
            lanes, size = min(LANES, r[R.values] - d), r[R.v_size]
            call_pack(r[R.v_pack], v + d * size, size, r[R.v_n], out + 4 * d, r[R.v_wide], n, lanes)
    else:
        return v, r[R.v_n]
    return out, r[R.v_wide]


@njit(**OPTIONS)
def _dots(r, job, q, q_line, k, count, n, out):
    """out[i, p] = q_i · k_p for `count` lines of q and `n` keys where they lie."""
    d = i64_pointer(job)
    for w in range(len(_D)):
        d[w] = 0
    d[_D.a], d[_D.a_row] = q, q_line
    d[_D.b], d[_D.b_col] = k, r[R.k_n]
    d[_D.c], d[_D.c_row] = out, _S_WIDE
    d[_D.batch1] = d[_D.group0] = d[_D.group1] = 1
    d[_D.rows], d[_D.cols], d[_D.inner], d[_D.cols_block] = count, n, r[R.width], n
    call_kernel(r[R.dots], job, 0, 1, job)


@njit(**OPTIONS)
def _tiles(r, job, a, a_row, b, b_k, to, sizes):
    """C = A·B, or C + A·B; strides in bytes, rows of B and C have no gaps."""
    c, c_row, adds = to
    rows, cols, inner = sizes
    t = i64_pointer(job)
    for w in range(len(_T)):
        t[w] = 0
    t[_T.a], t[_T.a_row], t[_T.a_k] = a, a_row, 4
    t[_T.b], t[_T.b_col], t[_T.b_k] = b, 4, b_k
    t[_T.c], t[_T.c_row] = c, c_row
    t[_T.d], t[_T.d_row] = c if adds else 0, c_row
    t[_T.batch1] = t[_T.group0] = t[_T.group1] = t[_T.b_block] = 1
    t[_T.rows], t[_T.cols], t[_T.inner] = rows, cols, inner
    t[_T.rows_block], t[_T.panels_block], t[_T.k_block] = rows, cols, inner
    t[_T.b_mode] = IN_PLACE
    call_kernel(r[R.tiles], job, 0, 1, job)


_ATTEND = Kernel(attend_cells, fastmath=FASTMATH)
