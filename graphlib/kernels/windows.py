"""Windows that slide over planes: their geometry, and the copying of windows into columns.

A plane has rows and columns (a signal of one axis is a plane of one row). Window (i, j) begins at
row ``i * stride - padding`` and column ``j * stride - padding``; its elements are `dilation`
apart. What lies outside the plane counts as zero.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from yupana.graphlib.kernels.blocks import NATIVE, View, both_kernels, head_words, is_wide
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import call_convert, i64_array
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.word_numbers import word_numbers

_PLACES = 32  # windows copied at a time: their elements stay in the L1 cache
_PLANE_BYTES = 1 << 18  # planes that one chunk adds up: they stay in the L2 cache
# Placeholders of the names that a Kernel binds; see blocks.bindings.
array: Any = None


@dataclass(frozen=True, slots=True)
class Windows:
    """Geometry along the two axes of a plane; `size` is that of a window."""

    plane: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)

    @property
    def places(self) -> tuple[int, int]:
        """How many windows there are along each axis."""
        first, second = (
            places(n, k, s, p, d)
            for n, k, s, p, d in zip(
                self.plane, self.size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return first, second


def places(n: int, size: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Windows that fit an axis of `n` elements; at most 0 if none does."""
    return (n + 2 * padding - dilation * (size - 1) - 1) // stride + 1


class WindowsRecord(NamedTuple):
    """Record of the kernels here. `x` is (N, C, H, W), `y` (N, rows, columns, C * kh * kw)."""

    load: int
    store: int
    native: int
    itemsize: int
    x: int
    x_code: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    y: int
    y_code: int
    y_n: int
    y_h: int
    y_w: int
    y_q: int
    channels: int
    height: int
    width: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    rows: int
    columns: int
    group: int  # of columns (im2col), of channels (im2col_back) that a chunk has
    whole: int  # whether the result is written where it lies


_R = word_numbers(WindowsRecord)  # word numbers
_WORDS = _R.n_words


def _record(x: View, y: View, windows: Windows, group: int, whole: bool) -> WindowsRecord:
    wide = is_wide([x, y])
    return WindowsRecord._make(
        (
            *head_words(wide),
            *(x.address, x.code, *x.strides),
            *(y.address, y.code, *y.strides),
            *x.shape[1:],
            *windows.size,
            *windows.stride,
            *windows.padding,
            *windows.dilation,
            *y.shape[1:3],
            group,
            int(whole),
        )
    )


def im2col(dst: View, src: View, windows: Windows) -> list[Step]:
    """`dst[n, i, j, (c, a, b)] = src[n, c]` at element (a, b) of window (i, j); both of 4 axes.

    `dst` is contiguous.
    """
    n, rows, columns, length = dst.shape
    if math.prod(dst.shape) == 0:
        return []
    wide = is_wide([src, dst])
    group = min(_PLACES, columns)
    native, itemsize = head_words(wide)[NATIVE:]
    record = _record(src, dst, windows, group, dst.code == native)
    span = (group - 1) * windows.stride[1] + (windows.size[1] - 1) * windows.dilation[1] + 1
    scratch = (src.shape[1] * windows.size[0] * span + group * length) * itemsize
    chunks = n * rows * -(-columns // group)
    return [Step(_IM2COL[wide], record, chunks, 1.0 * math.prod(dst.shape) + 50 * chunks, scratch)]


def im2col_back(dst: View, grad: View, windows: Windows) -> list[Step]:
    """`dst[n, c, h, w]` = sum of `grad` where `im2col` would copy that element to.

    `dst` is contiguous.
    """
    n, channels, height, width = dst.shape
    if math.prod(dst.shape) == 0:
        return []
    wide = is_wide([dst, grad])
    native, itemsize = head_words(wide)[NATIVE:]
    plane = height * width
    group = min(max(_PLANE_BYTES // (itemsize * plane), 1), channels)
    whole = dst.code == native
    record = _record(dst, grad, windows, group, whole)
    gathered = _PLACES * group * math.prod(windows.size)
    scratch = (gathered + (0 if whole else group * plane)) * itemsize
    chunks = n * -(-channels // group)
    ns = 1.5 * math.prod(grad.shape) + 0.2 * math.prod(dst.shape) + 50 * chunks
    return [Step(_IM2COL_BACK[wide], record, chunks, ns, scratch)]


@for_kernels
def _ceil(a, b):
    return -(-a // b)


def im2col_kernel(record, begin, end, scratch):
    """Chunks are (n, row of windows, group of windows): rows of the planes are read once."""
    r = i64_array(record, _WORDS)
    size, channels, kh, kw = r[_R.itemsize], r[_R.channels], r[_R.kh], r[_R.kw]
    length = channels * kh * kw
    groups = _ceil(r[_R.columns], r[_R.group])
    for chunk in range(begin, end):
        j0 = chunk % groups * r[_R.group]
        i, n = chunk // groups % r[_R.rows], chunk // groups // r[_R.rows]
        count = min(r[_R.group], r[_R.columns] - j0)
        # The columns of the plane that these windows see, and those that exist.
        left = j0 * r[_R.sw] - r[_R.pw]
        span = (count - 1) * r[_R.sw] + (kw - 1) * r[_R.dw] + 1
        first, last = max(left, 0), min(left + span, r[_R.width])
        for line in range(channels * kh):
            h = i * r[_R.sh] - r[_R.ph] + line % kh * r[_R.dh]
            place = scratch + line * span * size
            if h < 0 or h >= r[_R.height] or first >= last:
                array(place, span)[:] = 0
                continue
            array(place, first - left)[:] = 0
            array(place + (last - left) * size, left + span - last)[:] = 0
            x = r[_R.x] + n * r[_R.x_n] + line // kh * r[_R.x_c] + h * r[_R.x_h]
            x += first * r[_R.x_w]
            place += (first - left) * size
            call_convert(r[_R.load], x, r[_R.x_w], r[_R.x_code], last - first, place)
        target = r[_R.y] + n * r[_R.y_n] + i * r[_R.y_h] + j0 * r[_R.y_w]
        out = target if r[_R.whole] else scratch + channels * kh * span * size
        for q in range(length):
            row = array(scratch + (q // kw * span + q % kw * r[_R.dw]) * size, span)
            y = array(out + q * size, (count - 1) * length + 1)
            for j in range(count):
                y[j * length] = row[j * r[_R.sw]]
        if not r[_R.whole]:
            call_convert(r[_R.store], out, count * length, r[_R.y_code], target, r[_R.y_q])


def im2col_back_kernel(record, begin, end, scratch):
    """Chunks are (n, group of planes): no other chunk adds to those."""
    r = i64_array(record, _WORDS)
    size, kk = r[_R.itemsize], r[_R.kh] * r[_R.kw]
    plane = r[_R.height] * r[_R.width]
    groups = _ceil(r[_R.channels], r[_R.group])
    near = r[_R.y_code] == r[_R.native] and r[_R.y_q] == size
    for chunk in range(begin, end):
        c0, n = chunk % groups * r[_R.group], chunk // groups
        channels = min(r[_R.group], r[_R.channels] - c0)
        target = r[_R.x] + n * r[_R.x_n] + c0 * r[_R.x_c]
        out = target if r[_R.whole] else scratch + _PLACES * r[_R.group] * kk * size
        array(out, channels * plane)[:] = 0
        for i in range(r[_R.rows]):
            for j0 in range(0, r[_R.columns], _PLACES):
                count = min(_PLACES, r[_R.columns] - j0)
                y = r[_R.y] + n * r[_R.y_n] + i * r[_R.y_h] + j0 * r[_R.y_w] + c0 * kk * r[_R.y_q]
                step = r[_R.y_w]
                if not near:
                    packed = channels * kk * size
                    for j in range(count):
                        at, to = y + j * step, scratch + j * packed
                        call_convert(r[_R.load], at, r[_R.y_q], r[_R.y_code], channels * kk, to)
                    y, step = scratch, packed
                _add_windows(r, y, step // size, i, j0, count, channels, out)
        if not r[_R.whole]:
            step = r[_R.x_w]
            call_convert(r[_R.store], out, channels * plane, r[_R.x_code], target, step)


def _add(r, y, step, i, j0, count, channels, out):
    """Add `count` windows of row `i`, `step` elements apart, to the planes at `out`."""
    size, kh, kw, sw = r[_R.itemsize], r[_R.kh], r[_R.kw], r[_R.sw]
    for q in range(channels * kh * kw):
        h = i * r[_R.sh] - r[_R.ph] + q // kw % kh * r[_R.dh]
        left = j0 * sw - r[_R.pw] + q % kw * r[_R.dw]  # column that the first window adds to
        first = max(0, _ceil(-left, sw))
        last = min(count, _ceil(r[_R.width] - left, sw))
        if h < 0 or h >= r[_R.height] or first >= last:
            continue
        row = array(out + (q // (kh * kw) * r[_R.height] + h) * r[_R.width] * size, r[_R.width])
        g = array(y + q * size, (count - 1) * step + 1)
        for j in range(first, last):
            row[left + j * sw] += g[j * step]


_add_windows: Any = None  # what a Kernel binds: `_add`


_IM2COL = both_kernels(im2col_kernel)
_IM2COL_BACK = both_kernels(im2col_back_kernel, _add_windows=_add)
