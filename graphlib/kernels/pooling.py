"""Pooling: the largest element or the mean of every window of a plane, and their gradients."""

import math
from typing import Any, NamedTuple

import numpy as np

from yupana.graphlib.kernels.blocks import View, both_kernels, head_words, is_wide
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import call_convert, i64_array
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.windows import Windows
from yupana.graphlib.kernels.word_numbers import word_numbers

# Placeholders of the names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None


class PoolRecord(NamedTuple):
    """Record of the kernels here: operands of 4 axes, the last two those of planes."""

    load: int
    store: int
    native: int
    itemsize: int
    dst: int
    dst_code: int
    dst_0: int
    dst_1: int
    dst_h: int
    dst_w: int
    x: int  # planes with windows
    x_code: int
    x_0: int
    x_1: int
    x_h: int
    x_w: int
    u: int  # of `at_largest` planes, of `spread` one element for each window
    u_code: int
    u_0: int
    u_1: int
    u_h: int
    u_w: int
    outer: int  # size of the second axis
    height: int
    width: int
    rows: int
    columns: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    is_max: int
    whole: int  # whether a mean counts the elements of a window that lie outside


_R = word_numbers(PoolRecord)  # word numbers
_WORDS = _R.n_words


def pool(dst: View, x: View, windows: Windows, is_max: bool, whole: bool) -> list[Step]:
    """`dst[n, c, i, j]` = largest or mean element of window (i, j) of the plane `x[n, c]`."""
    rows = math.prod(dst.shape[:3])
    if math.prod(dst.shape) == 0:
        return []
    record = _record(dst, x, x, windows, is_max, whole)
    ns = math.prod(dst.shape) * (1 + 0.2 * math.prod(windows.size)) + 30 * rows
    return [Step(_POOL[is_wide([dst, x])], record, rows, ns, 8 * (x.shape[3] + dst.shape[3]))]


def at_largest(dst: View, u: View, x: View, windows: Windows) -> list[Step]:
    """`dst[n, c, i, j]` = the element of `u[n, c]` where window (i, j) of `x` is largest."""
    return _places(_AT, dst, u, x, windows, True, True)


def pool_back(
    dst: View, grad: View, x: View, windows: Windows, is_max: bool, whole: bool
) -> list[Step]:
    """`dst` = what windows add to the planes `x` whose largest or mean element has this gradient.

    The first of equal elements, row by row, gets all of it.
    """
    return _places(_SPREAD, dst, grad, x, windows, is_max, whole)


def _places(
    kernels: dict[bool, Kernel],
    dst: View,
    u: View,
    x: View,
    windows: Windows,
    is_max: bool,
    whole: bool,
) -> list[Step]:
    planes = math.prod(x.shape[:2])
    if math.prod(dst.shape) == 0:
        return []
    record = _record(dst, x, u, windows, is_max, whole)
    elements, found = math.prod(x.shape[2:]), math.prod(windows.places)
    ns = planes * (found * (2 + 1.0 * math.prod(windows.size)) + 0.3 * elements + 50)
    kernel = kernels[is_wide([dst, u, x])]
    return [Step(kernel, record, planes, ns, 8 * (2 * elements + windows.places[1]))]


def _record(dst: View, x: View, u: View, windows: Windows, is_max: bool, whole: bool) -> PoolRecord:
    words = [*head_words(is_wide([dst, x, u]))]
    for view in (dst, x, u):
        words += [view.address, view.code, *view.strides]
    words += [x.shape[1], *windows.plane, *windows.places, *windows.size, *windows.stride]
    return PoolRecord._make((*words, *windows.padding, int(is_max), int(whole)))


@for_kernels
def _inside(first, size, n):
    """The part of a window of `size` elements from `first` that lies within `n`, and its size."""
    low, high = max(first, 0), min(first + size, n)
    return low, high, max(high - low, 0)


def pool_kernel(record, begin, end, scratch):
    """Chunks are rows of the result."""
    r = i64_array(record, _WORDS)
    columns, width, kw, sw, pw = r[_R.columns], r[_R.width], r[_R.kw], r[_R.sw], r[_R.pw]
    out = array(scratch, columns)
    row_place = scratch + columns * r[_R.itemsize]
    row = array(row_place, width)
    is_max = r[_R.is_max] == 1
    for chunk in range(begin, end):
        i, plane = chunk % r[_R.rows], chunk // r[_R.rows]
        i0, i1 = plane // r[_R.outer], plane % r[_R.outer]
        out[:] = real(-np.inf) if is_max else real(0)
        low, high, tall = _inside(i * r[_R.sh] - r[_R.ph], r[_R.kh], r[_R.height])
        for h in range(low, high):
            x = r[_R.x] + i0 * r[_R.x_0] + i1 * r[_R.x_1] + h * r[_R.x_h]
            call_convert(r[_R.load], x, r[_R.x_w], r[_R.x_code], width, row_place)
            for b in range(kw):
                first = b - pw
                j0 = max(0, -(first // sw))  # windows whose element b lies in the row
                j1 = min(columns, -((first - width) // sw))
                if is_max:
                    for j in range(j0, j1):
                        v = row[first + j * sw]
                        out[j] = v if v > out[j] or v != v else out[j]  # a NaN stays
                else:
                    for j in range(j0, j1):
                        out[j] += row[first + j * sw]
        if not is_max:
            for j in range(columns):
                wide = _inside(j * sw - pw, kw, width)[2]
                out[j] /= real(r[_R.kh] * kw if r[_R.whole] else tall * wide)
        y = r[_R.dst] + i0 * r[_R.dst_0] + i1 * r[_R.dst_1] + i * r[_R.dst_h]
        call_convert(r[_R.store], scratch, columns, r[_R.dst_code], y, r[_R.dst_w])


@for_kernels
def _load(r, u, code, row_step, step, rows, columns, out):
    for i in range(rows):
        place = out + i * columns * r[_R.itemsize]
        call_convert(r[_R.load], u + i * row_step, step, code, columns, place)


@for_kernels
def _largest(plane, width, top, bottom, left, right):
    """Where the first of the largest elements of a window is; a NaN is larger than all."""
    at = top * width + left
    best = plane[at]
    for h in range(top, bottom):
        for k in range(h * width + left, h * width + right):
            if plane[k] > best or (plane[k] != plane[k] and best == best):
                at, best = k, plane[k]
    return at


def at_largest_kernel(record, begin, end, scratch):
    """Chunks are planes."""
    r = i64_array(record, _WORDS)
    height, width, columns = r[_R.height], r[_R.width], r[_R.columns]
    u_place = scratch + height * width * r[_R.itemsize]
    out_place = u_place + height * width * r[_R.itemsize]
    plane, picked = array(scratch, height * width), array(u_place, height * width)
    out = array(out_place, columns)
    for chunk in range(begin, end):
        i0, i1 = chunk // r[_R.outer], chunk % r[_R.outer]
        x = r[_R.x] + i0 * r[_R.x_0] + i1 * r[_R.x_1]
        u = r[_R.u] + i0 * r[_R.u_0] + i1 * r[_R.u_1]
        _load(r, x, r[_R.x_code], r[_R.x_h], r[_R.x_w], height, width, scratch)
        _load(r, u, r[_R.u_code], r[_R.u_h], r[_R.u_w], height, width, u_place)
        for i in range(r[_R.rows]):
            top, bottom, _ = _inside(i * r[_R.sh] - r[_R.ph], r[_R.kh], height)
            for j in range(columns):
                left, right, _ = _inside(j * r[_R.sw] - r[_R.pw], r[_R.kw], width)
                out[j] = picked[_largest(plane, width, top, bottom, left, right)]
            y = r[_R.dst] + i0 * r[_R.dst_0] + i1 * r[_R.dst_1] + i * r[_R.dst_h]
            call_convert(r[_R.store], out_place, columns, r[_R.dst_code], y, r[_R.dst_w])


def spread_kernel(record, begin, end, scratch):
    """Chunks are planes: windows that overlap add to the same elements, in order."""
    r = i64_array(record, _WORDS)
    height, width, columns = r[_R.height], r[_R.width], r[_R.columns]
    sum_place = scratch + height * width * r[_R.itemsize]
    g_place = sum_place + height * width * r[_R.itemsize]
    plane, total = array(scratch, height * width), array(sum_place, height * width)
    g = array(g_place, columns)
    for chunk in range(begin, end):
        i0, i1 = chunk // r[_R.outer], chunk % r[_R.outer]
        if r[_R.is_max]:
            x = r[_R.x] + i0 * r[_R.x_0] + i1 * r[_R.x_1]
            _load(r, x, r[_R.x_code], r[_R.x_h], r[_R.x_w], height, width, scratch)
        total[:] = 0
        for i in range(r[_R.rows]):
            u = r[_R.u] + i0 * r[_R.u_0] + i1 * r[_R.u_1] + i * r[_R.u_h]
            call_convert(r[_R.load], u, r[_R.u_w], r[_R.u_code], columns, g_place)
            top, bottom, tall = _inside(i * r[_R.sh] - r[_R.ph], r[_R.kh], height)
            for j in range(columns):
                left, right, wide = _inside(j * r[_R.sw] - r[_R.pw], r[_R.kw], width)
                if r[_R.is_max]:
                    total[_largest(plane, width, top, bottom, left, right)] += g[j]
                    continue
                part = g[j] / real(r[_R.kh] * r[_R.kw] if r[_R.whole] else tall * wide)
                for h in range(top, bottom):
                    for k in range(h * width + left, h * width + right):
                        total[k] += part
        for h in range(height):
            y = r[_R.dst] + i0 * r[_R.dst_0] + i1 * r[_R.dst_1] + h * r[_R.dst_h]
            place = sum_place + h * width * r[_R.itemsize]
            call_convert(r[_R.store], place, width, r[_R.dst_code], y, r[_R.dst_w])


_POOL = both_kernels(pool_kernel)
_AT = both_kernels(at_largest_kernel)
_SPREAD = both_kernels(spread_kernel)
