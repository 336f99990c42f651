"""What both passes of attention share: the record, and products and packing of blocks.

float32 uses the tiles and the packing of matrix multiplication; float64, which is for tests, plain
loops. Blocks in scratch memory have rows of whole vectors.
"""

from typing import Any, NamedTuple

from yupana.graphlib.kernels.attention_rows import DIFFERENTIATE, SOFTEN
from yupana.graphlib.kernels.blocks import bindings
from yupana.graphlib.kernels.compiler import FASTMATH, Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.gemm_kernels import IN_PLACE, TILES, TilesRecord
from yupana.graphlib.kernels.gemm_pack import call_pack
from yupana.graphlib.kernels.math import exp, tanh
from yupana.graphlib.kernels.pointers import (
    call_convert,
    call_kernel,
    f64_array,
    f64_pointer,
    f64_words,
    i64_pointer,
)
from yupana.graphlib.kernels.softmax import slope_of
from yupana.graphlib.kernels.vector import LANES
from yupana.graphlib.kernels.word_numbers import word_numbers


class AttentionRecord(NamedTuple):
    """Record of both passes. Strides are bytes along batch, head, row (of q or k), element."""

    load: int
    native: int
    size: int  # bytes of a number computed in
    tiles: int  # the kernel that multiplies blocks
    q: int
    q_b: int
    q_h: int
    q_t: int
    q_k: int
    q_code: int
    q_pack: int
    k: int
    k_b: int
    k_h: int
    k_s: int
    k_k: int
    k_code: int
    k_pack: int
    v: int
    v_b: int
    v_h: int
    v_s: int
    v_v: int
    v_code: int
    v_pack: int
    mask: int  # 0: none
    mask_b: int
    mask_h: int
    mask_t: int
    mask_s: int
    mask_code: int
    y: int  # results of the forward pass, its sums lie behind
    y_b: int
    y_h: int
    y_t: int
    y_v: int
    y_code: int
    lse: int  # log of the sum of each row
    lse_b: int
    lse_h: int
    lse_t: int
    g: int  # gradient of `y`
    g_b: int
    g_h: int
    g_t: int
    g_v: int
    g_code: int
    g_pack: int
    g_lse: int
    g_lse_b: int
    g_lse_h: int
    g_lse_t: int
    dq: int
    dq_b: int
    dq_h: int
    dq_t: int
    dk: int
    dk_b: int
    dk_h: int
    dk_s: int
    dv: int
    dv_b: int
    dv_h: int
    dv_s: int
    kv_heads: int
    group: int  # heads of q to one of k and v
    rows: int
    keys: int
    width: int
    values: int
    scale: int  # float64
    cap: int  # float64; 0: scores are not capped
    max_bias: int  # float64; 0: masks are added as they are
    slopes_from: int  # float64; see softmax.slope_of
    n_past: int  # -1: every row sees every key
    piece: int  # rows of a chunk; all heads of a group together
    row_block: int
    key_block: int
    k_wide: int  # bytes of a row of a block with the width of q and k
    v_wide: int  # of one with the width of v
    s_wide: int  # of one with a key block
    keys_at: int  # places in scratch memory
    keys_rows_at: int
    values_at: int
    queries_at: int
    grads_at: int
    scores_at: int
    slopes_at: int
    mixed_at: int
    mask_at: int
    damp_at: int  # derivative of the cap
    settings_at: int
    first_at: int  # one number for each row of the chunk
    second_at: int
    factor_at: int


R = word_numbers(AttentionRecord)  # word numbers
_T = word_numbers(TilesRecord)
JOB_BYTES = 8 * _T.n_words  # a record of the tile kernel, at the start of the scratch memory
OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}


def tiles_f64(record, begin, end, scratch):
    """What the tile kernel of matrix multiplication does in one chunk, in float64."""
    t = i64_pointer(record)
    for i in range(t[_T.rows]):
        total = f64_array(t[_T.c] + i * t[_T.c_row], t[_T.cols])
        if t[_T.d] == 0:
            for j in range(t[_T.cols]):
                total[j] = 0.0
        for k in range(t[_T.inner]):
            factor = f64_pointer(t[_T.a] + i * t[_T.a_row] + k * t[_T.a_k])
            row = f64_array(t[_T.b] + k * t[_T.b_k], t[_T.cols])
            for j in range(t[_T.cols]):
                total[j] += factor[0] * row[j]


TILES_OF = {False: TILES, True: Kernel(tiles_f64)}


@for_kernels(**OPTIONS)
def product(r, job, a, a_row, a_k, b, b_k, c, c_row, adds, rows, cols, inner):
    """C = A·B, or C + A·B, of blocks; `job` has room for a record of the tile kernel.

    Strides in bytes; rows of B and C have no gaps.
    """
    if rows * cols == 0:
        return
    t = i64_pointer(job)
    for k in range(_T.n_words):
        t[k] = 0
    t[_T.a], t[_T.a_row], t[_T.a_k] = a, a_row, a_k
    t[_T.b], t[_T.b_col], t[_T.b_k] = b, r[R.size], b_k
    t[_T.c], t[_T.c_row] = c, c_row
    t[_T.d], t[_T.d_row] = c if adds else 0, c_row
    t[_T.batch1] = t[_T.group0] = t[_T.group1] = 1
    t[_T.rows], t[_T.cols], t[_T.inner] = rows, cols, inner
    t[_T.rows_block], t[_T.panels_block], t[_T.k_block] = rows, cols, max(inner, 1)
    t[_T.b_mode] = IN_PLACE
    call_kernel(r[R.tiles], job, 0, 1, job)


@for_kernels(**OPTIONS)
def pack(r, function, code, source, line, step, out, out_k, count, lines):
    """out[k, i] = source[i, k] for k < `count` and i < `lines`; `line` and `step` are strides."""
    if function == 0:
        for k in range(count):
            call_convert(r[R.load], source + k * step, line, code, lines, out + k * out_k)
        return
    for i in range(0, lines, LANES):
        left = min(LANES, lines - i)
        call_pack(function, source + i * line, line, step, out + 4 * i, out_k, count, left)


@for_kernels(**OPTIONS)
def pack_rows(r, at, b, h, i0, count, out, wide, width):
    """Rows `i0` to `i0 + count` of the group `h` of operand words `at`, which are q's or g's."""
    rows, i = r[R.rows], i0
    while i < i0 + count:  # they may belong to several heads
        head, t = h * r[R.group] + i // rows, i % rows
        n = min(rows - t, i0 + count - i)
        source = r[at] + b * r[at + 1] + head * r[at + 2] + t * r[at + 3]
        to = out + (i - i0) * wide
        pack(r, r[at + 6], r[at + 5], source, r[at + 4], r[at + 3], to, wide, n, width)
        i += n


@for_kernels(**OPTIONS)
def rows_of(r, at, b, h, i0, count, out, wide, width):
    """Where these rows lie, and the bytes from row to row: in place if that can be, else `out`."""
    if r[at + 5] == r[R.native] and r[at + 4] == r[R.size] and i0 % r[R.rows] + count <= r[R.rows]:
        return row_place(r, at, b, h, i0), r[at + 3]
    pack_rows(r, at, b, h, i0, count, out, wide, width)
    return out, wide


@for_kernels(**OPTIONS)
def keys_of(r, at, b, h, j0, n, out, wide, width):
    """The same for `n` rows from `j0` of operand words `at`, which are k's or v's."""
    source = r[at] + b * r[at + 1] + h * r[at + 2] + j0 * r[at + 3]
    if r[at + 5] == r[R.native] and r[at + 4] == r[R.size]:
        return source, r[at + 3]
    pack(r, r[at + 6], r[at + 5], source, r[at + 4], r[at + 3], out, wide, n, width)
    return out, wide


@for_kernels(**OPTIONS)
def multiply_rows(r, b, h, i0, count, n, scratch):
    """Products of `count` rows of q from `i0` with the `n` keys packed: the scores."""
    out, wide = scratch + r[R.queries_at], r[R.k_wide]
    queries, step = rows_of(r, R.q, b, h, i0, count, out, wide, r[R.width])
    to = (scratch + r[R.scores_at], r[R.s_wide], False, count, n, r[R.width])
    product(r, scratch, queries, step, r[R.size], scratch + r[R.keys_at], r[R.s_wide], *to)


@for_kernels(**OPTIONS)
def next_row(r, head, t):
    """The row behind row `t` of a head; rows of a group follow each other."""
    t += 1
    return (head + 1, 0) if t == r[R.rows] else (head, t)


@for_kernels(**OPTIONS)
def keys_seen(r, i0, count, j0, n):
    """How many of the `n` keys from `j0` the furthest of these rows sees."""
    rows, last = r[R.rows], i0 + count - 1
    t = last % rows if i0 // rows == last // rows else rows - 1
    return min(n, max(visible(r, t) - j0, 0))


@for_kernels(**OPTIONS)
def row_place(r, at, b, h, i):
    """Address of row `i` of the group `h` of the operand whose words begin at `at`."""
    head, t = h * r[R.group] + i // r[R.rows], i % r[R.rows]
    return r[at] + b * r[at + 1] + head * r[at + 2] + t * r[at + 3]


@for_kernels(**OPTIONS)
def visible(r, t):
    """How many keys row `t` sees."""
    return r[R.keys] if r[R.n_past] < 0 else min(r[R.keys], r[R.n_past] + t + 1)


@for_kernels(**OPTIONS)
def settle(r, record, settings):
    """Fill the two settings of attention_rows.py: scores that `bend` has seen are scaled."""
    scale = f64_words(record + 8 * R.scale, 1)[0]
    settings[0] = 1.0 if r[R.mask] != 0 or r[R.cap] != 0 else scale
    settings[1] = scale


@for_kernels(**OPTIONS)
def bend(r, record, b, head, t, j0, row, damp, mask_row, mask):
    """Scale, cap and mask the scores of the keys seen from `j0`, for row `t` of a head of q.

    `damp` becomes the derivative of the cap; `mask_row`, at address `mask`, is for the mask.
    """
    real = row.dtype.type
    f = f64_words(record + 8 * R.scale, 4)
    factor = real(f[0])
    if r[R.cap] != 0:
        cap, factor = real(f[1]), real(f[0] / f[1])
        for j in range(row.size):
            z = row[j] * factor
            e = exp(real(-2) * abs(z))
            damp[j] = real(4) * e / ((real(1) + e) * (real(1) + e))  # 1 - tanh² has no digits left
            row[j] = cap * tanh(z)
        factor = real(1)
    if r[R.mask] == 0:
        return
    slope = real(1)
    if r[R.max_bias] != 0:
        slope = real(slope_of(float(head), f[2], f[3]))
    source = r[R.mask] + b * r[R.mask_b] + head * r[R.mask_h] + t * r[R.mask_t] + j0 * r[R.mask_s]
    call_convert(r[R.load], source, r[R.mask_s], r[R.mask_code], row.size, mask)
    for j in range(row.size):
        row[j] = row[j] * factor + slope * mask_row[j]


def typed_kernels(template: Any, **functions: Any) -> dict[bool, Kernel]:
    """A kernel for float32 (False) and for float64 (True)."""
    return {
        wide: Kernel(
            template,
            "f64" if wide else "f32",
            fastmath=FASTMATH,
            soften=SOFTEN[wide],
            differentiate=DIFFERENTIATE[wide],
            **bindings(wide),
            **functions,
        )
        for wide in (False, True)
    }
