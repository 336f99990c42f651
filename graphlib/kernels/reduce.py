"""Sums: over the axes an operand was repeated along, and over everything.

Additions happen in float64, in an order that depends on shapes only.
"""

import math
from collections.abc import Callable

import numpy as np
from numba import int64, void

from yupana.graphlib.kernels.blocks import HEAD, LOAD, STORE, View, collapse, head_words, padded
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F32
from yupana.graphlib.kernels.pointers import (
    call_body,
    call_convert,
    f32_array,
    f64_array,
    f64_pointer,
    i64_pointer,
)
from yupana.graphlib.kernels.step import Step, float_word

_PIECE = 256  # elements of a result row summed at a time; half of it where there are few
_CHUNK = 8192  # elements of one partial sum


def sum_to(dst: View, src: View) -> list[Step]:
    """`dst[j] = sum of src over the positions that repeat(dst) would copy dst[j] to`.

    Each axis of `src` is a multiple of that of `dst` (missing axes count as 1).
    """
    if 0 in dst.shape:
        return []
    axes = _merged_axes(dst, src)
    kept, tiles, steps, out = ([axis[k] for axis in axes] for k in range(4))
    apart = [k * step for k, step in zip(kept, steps, strict=True)]  # bytes between tiles
    body = _body(src.code, steps[3], kept[3])
    # The body adds up the innermost tiles there are; the driver goes through the others.
    inner = 2 if kept[3] > 1 and tiles[3] == 1 else 3
    stride, count = apart[inner], tiles[inner]
    loops = [*tiles[:inner], 1][:3]
    piece = _PIECE if math.prod(kept) >= 4 * _PIECE else _PIECE // 2
    pieces = -(-kept[3] // piece)
    chunks, size = math.prod(kept[:3]) * pieces, math.prod(src.shape)
    record = [*_head(src, body), dst.code, dst.address, *kept, *steps, *out]
    record += [*loops, *apart[:3], stride, count, piece, pieces]
    ns = 0.1 * size + 30 * chunks
    return [Step(_SUM_TO, tuple(record), chunks, ns, scratch=8 * (_PIECE + _CHUNK))]


def _head(src: View, body: Kernel) -> list[int]:
    step = src.strides[-1] if src.strides else src.itemsize
    return [*head_words(wide=True), body.address, src.code, src.address, step]


def _body(code: int, step: int, kept: int) -> Kernel:
    """What adds up rows, or single elements where one of them is kept."""
    if code == F32 and step == 4:
        return _ADD_ROWS_F32 if kept > 1 else _ADD_LINE_F32
    return _ADD_ROWS if kept > 1 else _ADD_LINE


def _merged_axes(dst: View, src: View) -> list[tuple[int, int, int, int]]:
    """Four axes as (size kept, tiles added up, byte stride of src, of dst), fewest loops inside.

    An axis joins the one inside it if that has one tile, or if both are added up altogether.
    """
    missing = len(src.shape) - len(dst.shape)
    axes: list[tuple[int, int, int, int]] = []
    for k in range(len(src.shape) - 1, -1, -1):
        n = dst.shape[k - missing] if k >= missing else 1
        kept, tiles, step = n, src.shape[k] // n, src.strides[k]
        out = dst.strides[k - missing] if k >= missing else 0
        if kept * tiles == 1 and axes:
            continue
        if axes:
            inner_kept, inner_tiles, inner_step, inner_out = axes[0]
            fits = step == inner_step * inner_kept * inner_tiles
            if fits and kept == inner_kept == 1:
                axes[0] = (1, tiles * inner_tiles, inner_step, inner_out)
                continue
            if fits and inner_tiles == 1 and (kept == 1 or out == inner_out * inner_kept):
                axes[0] = (kept * inner_kept, tiles, inner_step, inner_out)
                continue
        axes.insert(0, (kept, tiles, step, out))
    return [(1, 1, 0, 0)] * (4 - len(axes)) + axes


def sum_all(dst: View, src: View, scale: float, workspace: Callable[[int], int]) -> list[Step]:
    """`dst[()] = scale * sum(src)`."""
    merged = collapse([src])[0]
    rows, steps = padded(merged.shape, 4, 1), padded(merged.strides, 4)
    pieces = -(-rows[3] // _CHUNK)
    partials = math.prod(rows[:3]) * pieces
    address = workspace(8 * partials)
    record = [*_head(merged, _body(src.code, steps[3], 1)), *rows, *steps, pieces, address]
    ns = 0.1 * math.prod(rows) + 20 * partials
    summing = Step(_PARTIAL, tuple(record), partials, ns, 8 * (_PIECE + _CHUNK))
    finishing = finish_sum(dst, partials, scale, address)
    return [summing, finishing] if partials else [finishing]


def finish_sum(dst: View, partials: int, scale: float, workspace: int) -> Step:
    """`dst[()] = scale * sum` of `partials` float64 at `workspace`, added in order."""
    record = (*head_words(wide=True), dst.code, dst.address, partials, workspace, float_word(scale))
    return Step(_FINISH, record, 1, float(partials) + 20, 8)


_BODY, _CODE, _ADDRESS, _STEP = range(HEAD, HEAD + 4)
_DST = HEAD + 4
_KEPT, _STEPS, _OUT = _DST + 2, _DST + 6, _DST + 10
_LOOPS, _APART = _DST + 14, _DST + 17
_STRIDE, _COUNT, _LENGTH, _PIECES = range(_DST + 20, _DST + 24)
_BODY_SIGNATURE = void(*[int64] * 6)


def sum_to_kernel(record, begin, end, scratch):
    """Chunks are pieces of result rows; each adds up its source rows in order."""
    r = i64_pointer(record)
    for chunk in range(begin, end):
        start, rest = chunk % r[_PIECES] * r[_LENGTH], chunk // r[_PIECES]
        i2, rest = rest % r[_KEPT + 2], rest // r[_KEPT + 2]
        i1, i0 = rest % r[_KEPT + 1], rest // r[_KEPT + 1]
        n = min(r[_LENGTH], r[_KEPT + 3] - start)
        source = r[_ADDRESS] + i0 * r[_STEPS] + i1 * r[_STEPS + 1] + i2 * r[_STEPS + 2]
        source += start * r[_STEPS + 3]
        total = f64_pointer(scratch)
        for i in range(n):
            total[i] = 0.0
        for t0 in range(r[_LOOPS]):
            for t1 in range(r[_LOOPS + 1]):
                for t2 in range(r[_LOOPS + 2]):
                    tile = source + t0 * r[_APART] + t1 * r[_APART + 1] + t2 * r[_APART + 2]
                    call_body(r[_BODY], record, tile, r[_STRIDE], r[_COUNT], n, scratch)
        out = r[_DST + 1] + i0 * r[_OUT] + i1 * r[_OUT + 1] + i2 * r[_OUT + 2]
        call_convert(r[STORE], scratch, n, r[_DST], out + start * r[_OUT + 3], r[_OUT + 3])


def add_rows_f32(record, address, stride, count, n, scratch):
    """Add `count` rows of `n` contiguous float32, `stride` bytes apart, to totals in `scratch`."""
    total = f64_array(scratch, n)
    row = 0
    while row + 4 <= count:  # four at a time: the totals are read and written less often
        a, b = f32_array(address, n), f32_array(address + stride, n)
        c, d = f32_array(address + 2 * stride, n), f32_array(address + 3 * stride, n)
        for i in range(n):
            # np.float64, because float() leaves a float32 as it is in compiled code
            total[i] += np.float64(a[i]) + np.float64(b[i]) + np.float64(c[i]) + np.float64(d[i])
        address += 4 * stride
        row += 4
    while row < count:
        a = f32_array(address, n)
        for i in range(n):
            total[i] += np.float64(a[i])
        address += stride
        row += 1


def add_rows(record, address, stride, count, n, scratch):
    """The same for rows of any dtype and step."""
    r = i64_pointer(record)
    total, x = f64_array(scratch, n), f64_array(scratch + 8 * _PIECE, n)
    for row in range(count):
        source = address + row * stride
        call_convert(r[LOAD], source, r[_STEP], r[_CODE], n, scratch + 8 * _PIECE)
        for i in range(n):
            total[i] += x[i]


def add_line_f32(record, address, stride, count, n, scratch):
    """Add `count` contiguous float32 to the one total in `scratch`."""
    x = f32_array(address, count)
    total = 0.0
    for i in range(count):
        total += np.float64(x[i])
    f64_pointer(scratch)[0] += total


def add_line(record, address, stride, count, n, scratch):
    """The same for elements of any dtype, `stride` bytes apart."""
    r = i64_pointer(record)
    x = f64_array(scratch + 8 * _PIECE, _CHUNK)
    total = 0.0
    for start in range(0, count, _CHUNK):
        length = min(_CHUNK, count - start)
        source = address + start * stride
        call_convert(r[LOAD], source, stride, r[_CODE], length, scratch + 8 * _PIECE)
        for i in range(length):
            total += x[i]
    f64_pointer(scratch)[0] += total


_SIZES = HEAD + 4
_STRIDES, _PER_ROW, _PARTIALS = _SIZES + 4, _SIZES + 8, _SIZES + 9


def partial_sums(record, begin, end, scratch):
    """Chunks are pieces of rows; each leaves its float64 sum in the workspace."""
    r = i64_pointer(record)
    step = r[_STRIDES + 3]
    for chunk in range(begin, end):
        start, row = chunk % r[_PER_ROW] * _CHUNK, chunk // r[_PER_ROW]
        i2, i01 = row % r[_SIZES + 2], row // r[_SIZES + 2]
        i1, i0 = i01 % r[_SIZES + 1], i01 // r[_SIZES + 1]
        source = r[_ADDRESS] + i0 * r[_STRIDES] + i1 * r[_STRIDES + 1] + i2 * r[_STRIDES + 2]
        n = min(_CHUNK, r[_SIZES + 3] - start)
        f64_pointer(scratch)[0] = 0.0
        call_body(r[_BODY], record, source + start * step, step, n, 1, scratch)
        f64_pointer(r[_PARTIALS])[chunk] = f64_pointer(scratch)[0]


def finish(record, begin, end, scratch):
    """Add the partial sums in order, scale, store one element."""
    r = i64_pointer(record)
    partial = f64_pointer(r[HEAD + 3])
    total = 0.0
    for i in range(r[HEAD + 2]):
        total += partial[i]
    f64_pointer(scratch)[0] = f64_pointer(record)[HEAD + 4] * total
    call_convert(r[STORE], scratch, 1, r[HEAD], r[HEAD + 1], 8)


_SUM_TO = Kernel(sum_to_kernel)
_PARTIAL = Kernel(partial_sums)
_FINISH = Kernel(finish)
_ADD_ROWS_F32, _ADD_ROWS, _ADD_LINE_F32, _ADD_LINE = (
    Kernel(body, signature=_BODY_SIGNATURE)
    for body in (add_rows_f32, add_rows, add_line_f32, add_line)
)
