"""Convolution of each plane with a window of its own, and its gradients, without copies of windows.

A plane is cut into phases: phase (i, j) holds the rows and columns that are i and j beyond a
multiple of the stride, zeros around them. Then element (a, b) of all windows is a piece of one
phase without gaps, so that one long loop multiplies it with its weight, whatever the stride and
however small the plane; the columns that lie between rows of results are computed for nothing.
"""

import math
from typing import Any, NamedTuple

from yupana.graphlib.kernels.blocks import View, both_kernels, head_words, is_wide
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import call_convert, i64_pointer
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.windows import Windows
from yupana.graphlib.kernels.word_numbers import word_numbers

_BLOCK = 1024  # results added up at a time: they stay in the L1 cache
_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}
# Placeholders of the names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None


class DepthwiseRecord(NamedTuple):
    """`x` is (N, C, H, W), `y` (N, C, rows, columns), `w` (C, 1, kh, kw); strides in bytes."""

    load: int
    store: int
    native: int
    size: int
    x: int
    x_code: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    y: int
    y_code: int
    y_n: int
    y_c: int
    y_h: int
    y_w: int
    w: int
    w_code: int
    w_c: int
    w_1: int
    w_h: int
    w_w: int
    images: int
    channels: int
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
    tall: int  # rows and columns of a phase
    wide: int
    reach: int  # how far the last element of a window lies behind the first in a phase
    n_taps: int  # then (phase, place in the phase, element of the window), by phase


_R = word_numbers(DepthwiseRecord)
_TAPS = _R.n_words


def _record(x: View, y: View, w: View, windows: Windows) -> tuple[tuple[int, ...], int]:
    """The record, and the elements of all phases of a plane."""
    (height, width), (rows, columns) = windows.plane, windows.places
    (kh, kw), (sh, sw), (dh, dw) = windows.size, windows.stride, windows.dilation
    ph, pw = windows.padding
    tall = max(rows + (kh - 1) * dh // sh, -(-(height + ph) // sh))
    wide = max(columns + (kw - 1) * dw // sw, -(-(width + pw) // sw))
    taps = sorted(
        (a * dh % sh * sw + b * dw % sw, a * dh // sh * wide + b * dw // sw, a * kw + b)
        for a in range(kh)
        for b in range(kw)
    )
    record = (
        *head_words(is_wide([x, y, w])),
        *(x.address, x.code, *x.strides),
        *(y.address, y.code, *y.strides),
        *(w.address, w.code, *w.strides),
        *(*x.shape, rows, columns, kh, kw, sh, sw, ph, pw),
        *(tall, wide, max(place for _, place, _ in taps), len(taps)),
    )
    return (*record, *(word for tap in taps for word in tap)), sh * sw * tall * wide


def _steps(kernels: Any, chunks: int, x: View, y: View, w: View, windows: Windows) -> list[Step]:
    if chunks == 0:
        return []
    record, elements = _record(x, y, w, windows)
    r = DepthwiseRecord._make(record[:_TAPS])
    results = r.reach + r.tall * r.wide
    scratch = (elements + results + 2 * r.n_taps) * r.size + 256
    ns = math.prod(x.shape[:2]) * (100 + 0.05 * results * r.n_taps + 0.5 * elements)
    return [Step(kernels[is_wide([x, y, w])], record, chunks, ns, scratch)]


def depthwise_steps(y: View, w: View, x: View, windows: Windows) -> list[Step]:
    """`y[n, c, i, j] = sum of w[c, 0, a, b] * x[n, c]` at element (a, b) of window (i, j)."""
    return _steps(_FORWARD, math.prod(x.shape[:2]), x, y, w, windows)


def depthwise_back_steps(x: View, g: View, w: View, windows: Windows) -> list[Step]:
    """`x` = the gradient of the planes, where that of the result is `g`."""
    return _steps(_BACK, math.prod(x.shape[:2]), x, g, w, windows)


def depthwise_weights_steps(w: View, g: View, x: View, windows: Windows) -> list[Step]:
    """`w` = the gradient of the weights, where that of the result is `g`."""
    return _steps(_WEIGHTS, w.shape[0], x, g, w, windows)


@for_kernels(**_OPTIONS)
def _inside(n, step, before):
    """Which places j have 0 <= j * step - before < n: from the first to behind the last."""
    return max((before + step - 1) // step, 0), (n + before - 1) // step + 1


@for_kernels(**_OPTIONS)
def _zero(x):
    for j in range(x.size):
        x[j] = 0


@for_kernels(**_OPTIONS)
def _add3(y, x0, x1, x2, w0, w1, w2):
    for j in range(y.size):
        y[j] += w0 * x0[j] + w1 * x1[j] + w2 * x2[j]


@for_kernels(**_OPTIONS)
def _add1(y, x, w):
    for j in range(y.size):
        y[j] += w * x[j]


@for_kernels(**_OPTIONS)
def _dot(x, y):
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j] * y[j]
    return total


def _fill(r, n, c, out):
    """The phases of a plane."""
    size, sh, sw, tall, wide = r[_R.size], r[_R.sh], r[_R.sw], r[_R.tall], r[_R.wide]
    plane = r[_R.x] + n * r[_R.x_n] + c * r[_R.x_c]
    for phase in range(sh * sw):
        i, before = phase // sw, r[_R.pw] - phase % sw
        first, last = _inside(r[_R.width], sw, before)
        for q in range(tall):
            h = q * sh + i - r[_R.ph]
            if h < 0 or h >= r[_R.height] or first >= last:
                _zero(array(out, wide))
            else:
                _zero(array(out, first))
                _zero(array(out + last * size, wide - last))
                source = plane + h * r[_R.x_h] + (first * sw - before) * r[_R.x_w]
                step, to = sw * r[_R.x_w], out + first * size
                call_convert(r[_R.load], source, step, r[_R.x_code], last - first, to)
            out += wide * size


def _spill(r, n, c, phases):
    """The plane whose phases these are."""
    size, sh, sw, wide = r[_R.size], r[_R.sh], r[_R.sw], r[_R.wide]
    plane = r[_R.x] + n * r[_R.x_n] + c * r[_R.x_c]
    for h in range(r[_R.height]):
        i, q = (h + r[_R.ph]) % sh, (h + r[_R.ph]) // sh
        for j in range(sw):
            before = r[_R.pw] - j
            first, last = _inside(r[_R.width], sw, before)
            source = phases + (((i * sw + j) * r[_R.tall] + q) * wide + first) * size
            target = plane + h * r[_R.x_h] + (first * sw - before) * r[_R.x_w]
            step = sw * r[_R.x_w]
            call_convert(r[_R.store], source, max(last - first, 0), r[_R.x_code], target, step)


def _read_results(r, n, c, out):
    """Rows of results as they follow each other in a phase, zeros between and behind them."""
    size, wide, columns = r[_R.size], r[_R.wide], r[_R.columns]
    source = r[_R.y] + n * r[_R.y_n] + c * r[_R.y_c]
    for i in range(r[_R.rows]):
        row = out + i * wide * size
        call_convert(r[_R.load], source + i * r[_R.y_h], r[_R.y_w], r[_R.y_code], columns, row)
        _zero(array(row + columns * size, wide - columns))
    done = r[_R.rows] * wide
    _zero(array(out + done * size, r[_R.tall] * wide - done))


def _read_weights(r, c, taps, out):
    """Weights in the order of the taps; `out` has room for two for each."""
    size, kw = r[_R.size], r[_R.kw]
    found = out + r[_R.n_taps] * size
    for a in range(r[_R.kh]):
        source = r[_R.w] + c * r[_R.w_c] + a * r[_R.w_h]
        call_convert(r[_R.load], source, r[_R.w_w], r[_R.w_code], kw, found + a * kw * size)
    weights, natural = array(out, r[_R.n_taps]), array(found, r[_R.n_taps])
    for t in range(r[_R.n_taps]):
        weights[t] = natural[taps[3 * t + 2]]


# What a Kernel binds: the functions above.
fill: Any = None
spill: Any = None
read_results: Any = None
read_weights: Any = None


def depthwise(record, begin, end, scratch):
    """Chunks are planes."""
    r, taps = i64_pointer(record), i64_pointer(record + 8 * _TAPS)
    size, phase = r[_R.size], r[_R.tall] * r[_R.wide] * r[_R.size]
    out = scratch + r[_R.sh] * r[_R.sw] * phase
    length = (r[_R.rows] - 1) * r[_R.wide] + r[_R.columns]
    place = out + (r[_R.reach] + r[_R.tall] * r[_R.wide]) * size
    weights, n_taps = array(place, r[_R.n_taps]), r[_R.n_taps]
    for chunk in range(begin, end):
        n, c = chunk // r[_R.channels], chunk % r[_R.channels]
        fill(r, n, c, scratch)
        read_weights(r, c, taps, place)
        for j0 in range(0, length, _BLOCK):
            m = min(_BLOCK, length - j0)
            y, x = array(out + j0 * size, m), scratch + j0 * size
            _zero(y)
            t = 0
            while t + 3 <= n_taps:
                x0 = array(x + taps[3 * t] * phase + taps[3 * t + 1] * size, m)
                x1 = array(x + taps[3 * t + 3] * phase + taps[3 * t + 4] * size, m)
                x2 = array(x + taps[3 * t + 6] * phase + taps[3 * t + 7] * size, m)
                _add3(y, x0, x1, x2, weights[t], weights[t + 1], weights[t + 2])
                t += 3
            while t < n_taps:
                x0 = array(x + taps[3 * t] * phase + taps[3 * t + 1] * size, m)
                _add1(y, x0, weights[t])
                t += 1
        target = r[_R.y] + n * r[_R.y_n] + c * r[_R.y_c]
        for i in range(r[_R.rows]):
            row, to = out + i * r[_R.wide] * size, target + i * r[_R.y_h]
            call_convert(r[_R.store], row, r[_R.columns], r[_R.y_code], to, r[_R.y_w])


def depthwise_back(record, begin, end, scratch):
    """Chunks are planes: an element of a phase adds up results that lie before it."""
    r, taps = i64_pointer(record), i64_pointer(record + 8 * _TAPS)
    size, phase = r[_R.size], r[_R.tall] * r[_R.wide]
    before = scratch + r[_R.sh] * r[_R.sw] * phase * size
    place = before + (r[_R.reach] + phase) * size
    weights, results = array(place, r[_R.n_taps]), before + r[_R.reach] * size
    for chunk in range(begin, end):
        n, c = chunk // r[_R.channels], chunk % r[_R.channels]
        _zero(array(before, r[_R.reach]))
        read_results(r, n, c, results)
        read_weights(r, c, taps, place)
        _zero(array(scratch, r[_R.sh] * r[_R.sw] * phase))
        for j0 in range(0, phase, _BLOCK):
            m = min(_BLOCK, phase - j0)
            g, t = results + j0 * size, 0
            while t < r[_R.n_taps]:
                x = array(scratch + (taps[3 * t] * phase + j0) * size, m)
                g0 = array(g - taps[3 * t + 1] * size, m)
                if t + 3 <= r[_R.n_taps] and taps[3 * t] == taps[3 * t + 6]:
                    g1 = array(g - taps[3 * t + 4] * size, m)
                    g2 = array(g - taps[3 * t + 7] * size, m)
                    _add3(x, g0, g1, g2, weights[t], weights[t + 1], weights[t + 2])
                    t += 3
                else:
                    _add1(x, g0, weights[t])
                    t += 1
        spill(r, n, c, scratch)


def depthwise_weights(record, begin, end, scratch):
    """Chunks are channels, whose images are added up in turn."""
    r, taps = i64_pointer(record), i64_pointer(record + 8 * _TAPS)
    size, phase = r[_R.size], r[_R.tall] * r[_R.wide] * r[_R.size]
    results = scratch + r[_R.sh] * r[_R.sw] * phase
    length = (r[_R.rows] - 1) * r[_R.wide] + r[_R.columns]
    place = results + (r[_R.reach] + r[_R.tall] * r[_R.wide]) * size
    sums, g, kw = array(place, r[_R.n_taps]), array(results, length), r[_R.kw]
    for c in range(begin, end):
        _zero(sums)
        for n in range(r[_R.images]):
            fill(r, n, c, scratch)
            read_results(r, n, c, results)
            for t in range(r[_R.n_taps]):
                x = array(scratch + taps[3 * t] * phase + taps[3 * t + 1] * size, length)
                sums[taps[3 * t + 2]] += _dot(x, g)
        target = r[_R.w] + c * r[_R.w_c]
        for a in range(r[_R.kh]):
            row, to = place + a * kw * size, target + a * r[_R.w_h]
            call_convert(r[_R.store], row, kw, r[_R.w_code], to, r[_R.w_w])


_FORWARD = both_kernels(depthwise, fill=_fill, read_weights=_read_weights)
_BACK = both_kernels(
    depthwise_back, spill=_spill, read_results=_read_results, read_weights=_read_weights
)
_WEIGHTS = both_kernels(depthwise_weights, fill=_fill, read_results=_read_results)
