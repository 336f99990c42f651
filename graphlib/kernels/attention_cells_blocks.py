"""Blocks of attention to a cache: keys and values made ready, and products with them.

These are functions of the record of `attention_cells`, which says where everything lies.
"""

from typing import NamedTuple

from yupana.graphlib.kernels.attention_mix import MixRecord
from yupana.graphlib.kernels.attention_parts import OPTIONS
from yupana.graphlib.kernels.attention_rows import HALVE
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.gemm_dots import DotsRecord
from yupana.graphlib.kernels.gemm_kernels import IN_PLACE, TilesRecord
from yupana.graphlib.kernels.gemm_pack import call_pack
from yupana.graphlib.kernels.gemm_plan import K_BLOCK
from yupana.graphlib.kernels.pointers import call_convert, call_kernel, i64_pointer
from yupana.graphlib.kernels.vector import LANES
from yupana.graphlib.kernels.word_numbers import word_numbers

KEY_BLOCK = 256  # keys gone through at a time


class CellsRecord(NamedTuple):
    """Record of `attend_cells`; chunk = (piece of the rows, head of the cache)."""

    tiles: int  # kernel that multiplies blocks
    dots: int  # kernel that multiplies few lines of q with keys; 0: a row's lines take the tiles
    mix: int  # kernel that adds values up
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
    v_expands: int  # before `mix` too, which does not read it
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
    half: int
    piece: int
    v_wide: int  # bytes of a row of packed values
    scores_row: int  # bytes of a line's scores for all keys, of a row on its own
    keys_at: int  # places in scratch memory
    values_at: int
    scores_at: int
    peaks_at: int
    sums_at: int
    halves_at: int  # lines of q, rounded
    settings_at: int  # the scale, which `_soften` reads; a factor; a sum that is not wanted


R = word_numbers(CellsRecord)  # word numbers
_T = word_numbers(TilesRecord)
# A record of another kernel, at the start of the scratch.
JOB_BYTES = 8 * max(_T.n_words, len(DotsRecord._fields), len(MixRecord._fields))
S_WIDE = 4 * KEY_BLOCK
_halve = HALVE


@for_kernels(**OPTIONS)
def halved(r, q, q_line, count, factor, scratch):
    """Address and stride of `count` lines of q, rounded."""
    factor[0] = 1
    out, line = scratch + r[R.halves_at], 4 * ((r[R.width] + LANES - 1) // LANES * LANES)
    for m in range(count):
        _halve(q + m * q_line, out + m * line, r[R.width], scratch + r[R.settings_at] + 4)
    return out, line


@for_kernels(**OPTIONS)
def pack_keys(r, k, n, out):
    """out[d, p] = key p's element d, for `n` keys from address `k`."""
    for d in range(0, r[R.width], K_BLOCK):  # blocks are packed so many elements at a time
        source = k + d // r[R.k_block] * r[R.k_size]
        count = min(K_BLOCK, r[R.width] - d)
        for p in range(0, n, LANES):
            to = out + d * S_WIDE + 4 * p
            call_pack(
                r[R.k_pack],
                source + p * r[R.k_n],
                r[R.k_n],
                r[R.k_size],
                to,
                S_WIDE,
                count,
                min(LANES, n - p),
            )


@for_kernels(**OPTIONS)
def packed_values(r, seq, g, p0, n, out):
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


@for_kernels(**OPTIONS)
def tiles(r, job, a, a_row, b, b_k, to, sizes):
    """C = A·B, or C + A·B; strides in bytes, rows of B and C have no gaps."""
    c, c_row, adds = to
    rows, cols, inner = sizes
    t = i64_pointer(job)
    for w in range(_T.n_words):
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
