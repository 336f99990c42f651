"""The indices that put rows in order, or of their largest elements.

Elements are compared as integers made of the bits of their float64, which are in the same order:
NaN lies beyond infinity, -0 equals 0. Equal elements keep their order.
"""

import math

from yupana.graphlib.kernels.blocks import HEAD, LOAD, View, head_words, outer_sizes, padded
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import call_convert, i32_array, i64_array
from yupana.graphlib.kernels.step import Step

_N, _COUNT, _DESCENDING, _ROOM, _CODE, _ADDRESS, _STRIDES = range(HEAD, HEAD + 7)
_SIZES = _STRIDES + 4
_DST, _DST_STRIDES = _SIZES + 2, _SIZES + 3
_WORDS = _DST_STRIDES + 4
_MAGNITUDE = (1 << 63) - 1
_INFINITY = 0x7FF0000000000000  # bits of the float64


def ordered_indices(dst: View, src: View, descending: bool) -> list[Step]:
    """`dst[..., j]` = the index of the element that comes j-th in each row of `src`.

    `dst` is i32; where its rows are shorter than those of `src`, the first indices are kept.
    """
    n, count = src.shape[-1], dst.shape[-1]
    rows = math.prod(src.shape[:-1])
    if rows * count == 0:
        return []
    room = min(n, 2 * count + 16)  # candidates sorted at a time
    record = [*head_words(wide=True), n, count, int(descending), room, src.code, src.address]
    record += [*padded(src.strides, 4), *outer_sizes(src.shape)]
    record += [dst.address, *padded(dst.strides, 4)]
    ns = rows * (n + 3.0 * room * math.log2(room + 1))
    return [Step(_ORDER, tuple(record), rows, ns, 8 * n + 32 * room)]


@for_kernels
def _merge_sort(keys, places, room, n):
    """Sort `n` keys and their places; both arrays have as many spare elements behind `room`."""
    source, target, width = 0, room, 1
    while width < n:
        for start in range(0, n, 2 * width):
            i, middle = start, min(start + width, n)
            j, stop = middle, min(start + 2 * width, n)
            for k in range(start, stop):
                left = j >= stop or (i < middle and keys[source + i] <= keys[source + j])
                taken = i if left else j
                keys[target + k] = keys[source + taken]
                places[target + k] = places[source + taken]
                i, j = (i + 1, j) if left else (i, j + 1)
        source, target = target, source
        width *= 2
    if source != 0:
        for k in range(n):
            keys[k], places[k] = keys[room + k], places[room + k]


def order(record, begin, end, scratch):
    """Chunks are rows."""
    r = i64_array(record, _WORDS)
    n, count, room = r[_N], r[_COUNT], r[_ROOM]
    bits = i64_array(scratch, n)
    keys = i64_array(scratch + 8 * n, 2 * room)
    places = i64_array(scratch + 8 * n + 16 * room, 2 * room)
    for row in range(begin, end):
        i2, i01 = row % r[_SIZES + 1], row // r[_SIZES + 1]
        i1, i0 = i01 % r[_SIZES], i01 // r[_SIZES]
        x = r[_ADDRESS] + i0 * r[_STRIDES] + i1 * r[_STRIDES + 1] + i2 * r[_STRIDES + 2]
        call_convert(r[LOAD], x, r[_STRIDES + 3], r[_CODE], n, scratch)
        found, worst = 0, _MAGNITUDE
        for j in range(n):
            size = bits[j] & _MAGNITUDE
            key = -size if bits[j] < 0 else size
            key = _INFINITY + 1 if size > _INFINITY else key
            key = -key if r[_DESCENDING] else key
            if key >= worst:
                continue  # as good as the worst of the best, and behind it
            if found == room:
                _merge_sort(keys, places, room, found)
                found, worst = count, keys[count - 1]
                if key >= worst:
                    continue
            keys[found], places[found] = key, j
            found += 1
        _merge_sort(keys, places, room, found)
        y = r[_DST] + i0 * r[_DST_STRIDES] + i1 * r[_DST_STRIDES + 1] + i2 * r[_DST_STRIDES + 2]
        for j in range(count):
            i32_array(y + j * r[_DST_STRIDES + 3], 1)[0] = places[j]


_ORDER = Kernel(order)
