"""Attention to a cache of keys and values, of which each row sees as much as its cell says.

    y[t, h] = sum_p softmax(scale · k[s, p, h // group] · q[t, h]) · v[s, p, h // group]

over the positions p from 0 to that of row t, in the sequence s that it belongs to; both are data.
A chunk is a head of the cache and a piece of the rows. Rows that follow each other in one sequence
go through its keys together, block by block (see kernels/attention.py), packed for the tiles of
matrix multiplication; one row on its own reads them where they lie.

Weights that are rounded have to be those of the whole row: beyond one block of keys, such rows then
go through the keys twice, once for the sums.
"""

from dataclasses import dataclass

import numpy as np

from yupana.graphlib.dtypes import DTYPES, QUANTIZED
from yupana.graphlib.kernels.attention_cells_blocks import (
    JOB_BYTES,
    KEY_BLOCK,
    S_WIDE,
    CellsRecord,
    R,
    halved,
    pack_keys,
    packed_values,
    tiles,
)
from yupana.graphlib.kernels.attention_cells_one import MOST_LINES, attend_one
from yupana.graphlib.kernels.attention_mix import MIX
from yupana.graphlib.kernels.attention_parts import OPTIONS
from yupana.graphlib.kernels.attention_rows import HALVE, SOFTEN
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.compiler import FASTMATH, Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.gemm_dots import DOTS
from yupana.graphlib.kernels.gemm_kernels import TILES
from yupana.graphlib.kernels.gemm_pack import PACK
from yupana.graphlib.kernels.pointers import (
    f32_array,
    f64_words,
    i32_array,
    i64_array,
)
from yupana.graphlib.kernels.quant_dots import QUANT_DOTS
from yupana.graphlib.kernels.quant_pack import PACK_BLOCKS
from yupana.graphlib.kernels.quant_rows import LOAD
from yupana.graphlib.kernels.step import Step, float_word
from yupana.graphlib.kernels.vector import LANES

_ROW_BLOCK = 32
_PIECE = 128  # rows of a chunk at most: packing is done anew for each
_FLOPS_PER_NS = 60.0
_NAMES = {dtype.code: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class CellAttention:
    """Operands: q and y (T, H, K or V) f32, k and v (S, N, G, K or V), cells (T,) i32.

    Heads of k and v have no gaps between their elements. `half`: q and the weights are rounded to
    float16 before they are multiplied.
    """

    q: View
    k: View
    v: View
    cells: View
    y: View
    scale: float
    half: bool = False


_soften, _halve = SOFTEN[False], HALVE


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
    goes_alone = width >= LANES and group <= MOST_LINES
    scores_row = 4 * _up(n_cells, LANES)
    sizes = (  # of the places in scratch memory
        width * S_WIDE,
        0 if in_place else KEY_BLOCK * v_wide,
        max(_ROW_BLOCK * S_WIDE, group * scores_row if goes_alone else 0),
        4 * piece * group,
        4 * piece * group,
        4 * _ROW_BLOCK * _up(width, LANES) if a.half else 0,
        16,
    )
    places, at = [], _up(JOB_BYTES, 64)
    for nbytes in sizes:
        places.append(at)
        at += _up(nbytes, 64)
    words = (
        TILES.address,
        (QUANT_DOTS if k_name in QUANTIZED else DOTS)[k_name].address if goes_alone else 0,
        MIX[v_name if v_name in MIX else "f32"].address,
        *_place(a.q)[:3],
        *_place(a.k)[:4],
        DTYPES[k_name].itemsize,
        DTYPES[k_name].block,
        (PACK_BLOCKS if k_name in QUANTIZED else PACK)[k_name].address,
        *_place(a.v)[:4],
        0 if in_place or v_name in QUANTIZED else PACK[v_name].address,
        LOAD[v_name].address if v_name in QUANTIZED else 0,
        int(v_name in QUANTIZED and v_name not in MIX),
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
        int(a.half),
        piece,
        v_wide,
        scores_row,
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


def attend_cells(record, begin, end, scratch):
    """Chunks are (piece of the rows, head of the cache)."""
    r = i64_array(record, R.n_words)
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
                if j == i + 1 and r[R.dots] != 0:
                    attend_one(r, g, seq, i, seen, scratch)
                else:
                    _attend_run(r, g, seq, i, j, seen, scratch)
            i = j


@for_kernels(**OPTIONS)
def _cell(r, t):
    """The cell of row `t`; negative where there is none."""
    cell = i32_array(r[R.cells] + t * r[R.cells_t], 1)[0]
    return cell if cell < r[R.n_seq] * r[R.n_cells] else -1


@for_kernels(**OPTIONS)
def _clear(r, g, t):
    """Zeros for a row that sees nothing."""
    for h in range(g * r[R.group], (g + 1) * r[R.group]):
        f32_array(r[R.y] + t * r[R.y_t] + h * r[R.y_h], r[R.values])[:] = 0


@for_kernels(**OPTIONS)
def _attend_run(r, g, seq, first, last, seen, scratch):
    """Rows `first` to `last` of sequence `seq`, of which the furthest sees `seen` keys.

    Lines go through the keys together: rows of one head, or the heads of one row.
    """
    tokens, group = last - first, r[R.group]
    lines, outer = (group, 1) if tokens == 1 else (tokens, group)
    for at in range(lines * outer):
        f32_array(scratch + r[R.peaks_at], lines * outer)[at] = -np.inf
        f32_array(scratch + r[R.sums_at], lines * outer)[at] = 0
    twice = r[R.half] != 0 and seen > KEY_BLOCK
    for stage in range(0 if twice else 1, 2):
        only_sums, has_sums = twice and stage == 0, twice and stage == 1
        for p0 in range(0, seen, KEY_BLOCK):
            n = min(KEY_BLOCK, seen - p0)
            k = r[R.k] + seq * r[R.k_s] + p0 * r[R.k_n] + g * r[R.k_g]
            pack_keys(r, k, n, scratch + r[R.keys_at])
            v, v_row = np.int64(0), np.int64(0)
            if not only_sums:
                v, v_row = packed_values(r, seq, g, p0, n, scratch + r[R.values_at])
            for h in range(outer):
                for i in range(0, lines, _ROW_BLOCK):
                    count = min(_ROW_BLOCK, lines - i)
                    block = (first, tokens, g * group + h, i, h * lines + i, count)
                    keys = (p0, n)
                    _attend_block(r, block, keys, v, v_row, (only_sums, has_sums), scratch)
    if r[R.half] != 0:
        return
    sums = f32_array(scratch + r[R.sums_at], lines * outer)
    for h in range(outer):
        for i in range(lines):
            t, head = _row_of(first, tokens, g * group + h, i)
            y = f32_array(r[R.y] + t * r[R.y_t] + head * r[R.y_h], r[R.values])
            inverse = np.float32(1) / sums[h * lines + i]
            for d in range(r[R.values]):
                y[d] *= inverse


@for_kernels(**OPTIONS)
def _row_of(first, tokens, head, i):
    """Row and head of line `i`: see `_attend_run`."""
    return (first, head + i) if tokens == 1 else (first + i, head)


@for_kernels(**OPTIONS)
def _visible(r, t, p0, n):
    """How many of `n` keys from position `p0` row `t` sees."""
    return min(_cell(r, t) % r[R.n_cells] + 1 - p0, n)


@for_kernels(**OPTIONS)
def _attend_block(r, block, keys, v, v_row, sums, scratch):
    """Let some lines see a block of keys.

    `block` is what `_attend_run` says of the lines, and `keys` of the keys. `sums`: whether the
    sums of the weights are all that is wanted, and whether they are known.
    """
    first, tokens, head, i0, at, count = block
    p0, n = keys
    only_sums, has_sums = sums
    most = 0
    for m in range(count):
        most = max(most, _visible(r, _row_of(first, tokens, head, i0 + m)[0], p0, n))
    if most == 0:
        return
    t0, head0 = _row_of(first, tokens, head, i0)
    q_line, y_line = (r[R.q_h], r[R.y_h]) if tokens == 1 else (r[R.q_t], r[R.y_t])
    q, y = r[R.q] + t0 * r[R.q_t] + head0 * r[R.q_h], r[R.y] + t0 * r[R.y_t] + head0 * r[R.y_h]
    scores, settings = scratch + r[R.scores_at], scratch + r[R.settings_at]
    factor = f32_array(settings + 4, 1)
    if r[R.half] != 0:
        q, q_line = halved(r, q, q_line, count, factor, scratch)
    packed, to = scratch + r[R.keys_at], (scores, S_WIDE, False)
    tiles(r, scratch, q, q_line, packed, S_WIDE, to, (count, most, r[R.width]))
    for m in range(count):
        t, _ = _row_of(first, tokens, head, i0 + m)
        seen, row = max(_visible(r, t, p0, n), 0), scores + m * S_WIDE
        peak, total = scratch + r[R.peaks_at] + 4 * (at + m), scratch + r[R.sums_at] + 4 * (at + m)
        _soften(row, seen, most, settings, peak, settings + 8 if has_sums else total, settings + 4)
        if only_sums:
            continue
        if r[R.half] != 0:
            factor[0] = np.float32(1) / f32_array(total, 1)[0]
            _halve(row, row, most, settings + 4)
        elif p0 > 0:
            out = f32_array(y + m * y_line, r[R.values])
            for d in range(r[R.values]):
                out[d] *= factor[0]
    if not only_sums:
        to = (y, y_line, p0 > 0)
        tiles(r, scratch, scores, S_WIDE, v, v_row, to, (count, r[R.values], most))


_ATTEND = Kernel(attend_cells, fastmath=FASTMATH)
