"""The tile kernel of matrix multiplication and its packing; `gemm` makes the steps.

Records are int64 words in the order of the `namedtuple`s here. Strides are in bytes, "b0" and
"b1" name the two batch axes. No kernel adds anything across chunks, and the order in which a
chunk adds over k depends on shapes only, so neither threads nor the split into chunks matter.
"""

from typing import Any, NamedTuple

from numba.extending import register_jitable

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_micro import TILE_ROWS, multiply_pair_tile, multiply_tile
from yupana.graphlib.kernels.gemm_pack import call_pack
from yupana.graphlib.kernels.pointers import i64_array
from yupana.graphlib.kernels.vector import LANES
from yupana.graphlib.kernels.word_numbers import word_numbers

# How `tiles` finds the panels of B
IN_PLACE, PACKED, TO_PACK = 0, 1, 2
_GROUP = LANES * 4  # bytes of one packed group at one k
# What a Kernel binds.
tiles_of_block: Any = None
tile: Any = None


class TilesRecord(NamedTuple):
    """Record of `tiles`; chunk = ((b0, b1), column block, row block)."""

    a: int
    a_b0: int
    a_b1: int
    a_row: int
    a_k: int
    b: int
    b_b0: int
    b_b1: int
    b_col: int
    b_k: int
    b_block: int  # b_k leads that many elements further: a block of a quantised type, or 1
    c: int
    c_b0: int
    c_b1: int
    c_row: int
    d: int  # 0: nothing to add
    d_b0: int
    d_b1: int
    d_row: int
    batch1: int
    group0: int
    group1: int
    rows: int
    cols: int
    inner: int
    rows_block: int
    panels_block: int
    k_block: int
    b_mode: int  # IN_PLACE, PACKED or TO_PACK
    pack_a: int  # function of gemm_pack that packs A in scratch; 0: float32 is read in place
    pack_b: int  # the same for B; used by TO_PACK


class PackRecord(NamedTuple):
    """Record of `pack_panels`; chunk = ((b0, b1), block of k, panel)."""

    b: int
    b_b0: int
    b_b1: int
    b_col: int
    b_k: int
    b_block: int
    out: int
    out_batch: int
    batch1: int
    cols: int
    inner: int
    k_block: int
    pack_b: int


_T = word_numbers(TilesRecord)  # word numbers
_P = word_numbers(PackRecord)
_WORDS = max(_T.n_words, _P.n_words)


@register_jitable
def n_panels(vectors):
    """Panels that `vectors` vectors of columns are cut into: threes, the rest as 2, 2+2 or 1."""
    return (vectors + 2) // 3


@register_jitable
def panel_start(panel, vectors):
    """First vector of a panel; `panel_start(n_panels(v), v)` is at least v."""
    threes = vectors // 3
    if vectors % 3 == 1 and vectors > 1:
        threes -= 1  # 4 = 2 + 2 keeps the processor busier than 3 + 1
    if panel <= threes:
        return 3 * panel
    return 3 * threes + 2 * (panel - threes)


@register_jitable
def _pack_panel(pack, b, b_col, b_k, block, count, cols, panel, vectors):
    """Pack one panel of B to its place in the block of all panels, which begins at `block`."""
    v0 = panel_start(panel, vectors)
    v1 = min(panel_start(panel + 1, vectors), vectors)
    for v in range(v0, v1):
        lines = min(LANES, cols - v * LANES)
        place = block + (v0 * count + v - v0) * _GROUP
        call_pack(pack, b + v * LANES * b_col, b_col, b_k, place, (v1 - v0) * _GROUP, count, lines)


def tiles(record, begin, end, scratch):
    """Chunks are ((b0, b1), block of columns, block of rows); each is summed over all k."""
    r = i64_array(record, _WORDS)
    vectors = (r[_T.cols] + LANES - 1) // LANES
    panels = n_panels(vectors)
    col_blocks = (panels + r[_T.panels_block] - 1) // r[_T.panels_block]
    row_blocks = (r[_T.rows] + r[_T.rows_block] - 1) // r[_T.rows_block]
    row, col = begin % row_blocks, begin // row_blocks
    batch, col = col // col_blocks, col % col_blocks
    b0, b1 = batch // r[_T.batch1], batch % r[_T.batch1]
    for _ in range(begin, end):
        i0, p0 = row * r[_T.rows_block], col * r[_T.panels_block]
        i1 = min(i0 + r[_T.rows_block], r[_T.rows])
        p1 = min(p0 + r[_T.panels_block], panels)
        k0 = 0
        while True:  # once also where there is nothing to sum
            count = min(r[_T.k_block], r[_T.inner] - k0)
            tiles_of_block(r, b0, b1, i0, i1, p0, p1, k0, count, vectors, scratch)
            k0 += r[_T.k_block]
            if k0 >= r[_T.inner]:
                break
        row += 1  # to the next chunk, without the divisions: small products have no time for them
        if row == row_blocks:
            row = 0
            col += 1
        if col == col_blocks:
            col = 0
            b1 += 1
        if b1 == r[_T.batch1]:
            b1 = 0
            b0 += 1


@register_jitable
def _part(count, whole):
    """How many times `whole` goes into `count`, without a division in the usual case of 1."""
    return count if whole == 1 else count // whole


def _tiles_of_block(r, b0, b1, i0, i1, p0, p1, k0, count, vectors, scratch):
    """Add the part of the sum over k in [k0, k0 + count) for rows [i0, i1), panels [p0, p1)."""
    g0, g1 = _part(b0, r[_T.group0]), _part(b1, r[_T.group1])
    a = r[_T.a] + b0 * r[_T.a_b0] + b1 * r[_T.a_b1] + i0 * r[_T.a_row] + k0 * r[_T.a_k]
    b = r[_T.b] + g0 * r[_T.b_b0] + g1 * r[_T.b_b1] + _part(k0, r[_T.b_block]) * r[_T.b_k]
    c_row = r[_T.c_row]
    c = r[_T.c] + b0 * r[_T.c_b0] + b1 * r[_T.c_b1] + i0 * c_row
    d, d_row = c, c_row
    if k0 == 0:
        d, d_row = r[_T.d], r[_T.d_row]
        if d != 0:
            d += b0 * r[_T.d_b0] + b1 * r[_T.d_b1] + i0 * d_row
    a_row, a_k = r[_T.a_row], r[_T.a_k]
    block = r[_T.b]  # where panel 0 of this block of k lies or would lie
    if r[_T.b_mode] == PACKED:
        block += g0 * r[_T.b_b0] + g1 * r[_T.b_b1] + k0 * vectors * _GROUP
    elif r[_T.b_mode] == TO_PACK:
        block = scratch - panel_start(p0, vectors) * _GROUP * count
        scratch += (panel_start(p1, vectors) - panel_start(p0, vectors)) * _GROUP * count
        for panel in range(p0, p1):
            b_col, cols = r[_T.b_col], r[_T.cols]
            _pack_panel(r[_T.pack_b], b, b_col, r[_T.b_k], block, count, cols, panel, vectors)
    if r[_T.pack_a] != 0:
        for i in range(0, i1 - i0, LANES):
            lines = min(LANES, i1 - i0 - i)
            place = scratch + i * 4 * count
            call_pack(r[_T.pack_a], a + i * a_row, a_row, a_k, place, _GROUP, count, lines)
        a_row, a_k = 4, _GROUP
        a = scratch
    for panel in range(p0, p1):
        v0 = panel_start(panel, vectors)
        width = _GROUP * (min(panel_start(panel + 1, vectors), vectors) - v0)
        lanes = min(r[_T.cols] - v0 * LANES, width // 4)
        start, b_k = block + v0 * count * _GROUP, width
        if r[_T.b_mode] == IN_PLACE:
            start, b_k = b + v0 * _GROUP, r[_T.b_k]
        for i in range(0, i1 - i0, TILE_ROWS):
            place = a + i * a_row
            if r[_T.pack_a] != 0:
                place = a + (i // LANES * LANES * count + i % LANES) * 4
            to = c + i * c_row + v0 * _GROUP
            plus = d + i * d_row + v0 * _GROUP if d != 0 else 0
            left = i1 - i0 - i
            tile(place, a_row, a_k, start, b_k, to, c_row, plus, d_row, count, lanes, left)


def pack_panels(record, begin, end, scratch):
    """Chunks are ((b0, b1), block of k, panel): packs B for all the chunks of `tiles`."""
    r = i64_array(record, _WORDS)
    vectors = (r[_P.cols] + LANES - 1) // LANES
    panels = n_panels(vectors)
    k_blocks = (r[_P.inner] + r[_P.k_block] - 1) // r[_P.k_block]
    for chunk in range(begin, end):
        batch = chunk // (panels * k_blocks)
        k0 = chunk // panels % k_blocks * r[_P.k_block]
        count = min(r[_P.k_block], r[_P.inner] - k0)
        b0, b1 = batch // r[_P.batch1], batch % r[_P.batch1]
        b = r[_P.b] + b0 * r[_P.b_b0] + b1 * r[_P.b_b1]
        b += _part(k0, r[_P.b_block]) * r[_P.b_k]
        block = r[_P.out] + batch * r[_P.out_batch] + k0 * vectors * _GROUP
        b_col, b_k, cols, panel = r[_P.b_col], r[_P.b_k], r[_P.cols], chunk % panels
        _pack_panel(r[_P.pack_b], b, b_col, b_k, block, count, cols, panel, vectors)


TILES = Kernel(tiles, tiles_of_block=_tiles_of_block, tile=multiply_tile)
PAIR_TILES = Kernel(tiles, "pairs", tiles_of_block=_tiles_of_block, tile=multiply_pair_tile)
PACK_PANELS = Kernel(pack_panels)
