"""Weighted sums of a few elements along one axis: interpolation, reflection, and their gradients.

What an output reads, its taps, is worked out when the graph is lowered and lies in the record.
The gradient reads along the same taps from the other end, so it is a list of taps again.
"""

import math
from collections.abc import Sequence
from typing import Any

from yupana.graphlib.kernels.blocks import HEAD, LOAD, SIZE, STORE, View, both_kernels, head_words
from yupana.graphlib.kernels.blocks import is_wide as computes_wide
from yupana.graphlib.kernels.pointers import call_convert, f64_pointer, i64_pointer
from yupana.graphlib.kernels.step import Step, float_word

# For each output the (input, weight) pairs that are added up.
Taps = Sequence[Sequence[tuple[int, float]]]

# Sizes of two outer axes, of rows and of the elements of a row; then code, address and four
# strides of result and source; then where the taps of each output start, and the taps.
_ALONG_ROWS, _S1, _ROWS, _LENGTH, _N_OUT = range(HEAD, HEAD + 5)
_DST, _SRC = HEAD + 5, HEAD + 11
_STARTS = HEAD + 17
array: Any = None  # a Kernel binds it; see blocks.bindings
real: Any = None


def transposed(taps: Taps, n: int) -> Taps:
    """The taps of the gradient: which outputs read each of `n` inputs, and their weights."""
    back: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    for k, pairs in enumerate(taps):
        for at, weight in pairs:
            back[at].append((k, weight))
    return back


def tap_steps(dst: View, src: View, axis: int, taps: Taps) -> list[Step]:
    """`dst[…, k, …] = sum of weight * src[…, at, …]` over the taps (at, weight) of k."""
    if math.prod(dst.shape) == 0:
        return []
    last = len(src.shape) - 1
    # The axis comes last, or before the last: then whole rows are added up.
    order = [*(a for a in range(last) if a != axis), *([axis] if axis != last else []), last]
    missing = 4 - len(order)
    shape = [1] * missing + [src.shape[a] for a in order]
    wide = computes_wide([dst, src])
    starts, pairs = [0], [pair for some in taps for pair in some]
    for some in taps:
        starts.append(starts[-1] + len(some))
    record = [*head_words(wide), int(axis == last), shape[1], shape[2], shape[3], len(taps)]
    for view in (dst, src):
        strides = [0] * missing + [view.strides[a] for a in order]
        record += [view.code, view.address, *strides]
    record += [*starts, *(at for at, _ in pairs), *(float_word(weight) for _, weight in pairs)]
    outer = shape[0] * shape[1]
    chunks = outer * (shape[2] if axis == last else len(taps))
    ns = 20 * chunks + 0.4 * math.prod(dst.shape) * len(pairs) / len(taps)
    scratch = 8 * (shape[3] + max(shape[3], len(taps)))
    return [Step(_TAPS[wide], tuple(record), chunks, ns, scratch)]


def add_taps(record, begin, end, scratch):
    """Chunks are rows: made of the elements of one row, or of several whole rows."""
    r = i64_pointer(record)
    n, n_out = r[_LENGTH], r[_N_OUT]
    starts = i64_pointer(record + 8 * _STARTS)
    places = i64_pointer(record + 8 * (_STARTS + n_out + 1))
    weights = f64_pointer(record + 8 * (_STARTS + n_out + 1 + starts[n_out]))
    x, y_place = array(scratch, n), scratch + n * r[SIZE]
    rows = r[_ROWS] if r[_ALONG_ROWS] else n_out
    length = n_out if r[_ALONG_ROWS] else n
    y = array(y_place, length)
    for chunk in range(begin, end):
        row, outer = chunk % rows, chunk // rows
        i0, i1 = outer // r[_S1], outer % r[_S1]
        source = r[_SRC + 1] + i0 * r[_SRC + 2] + i1 * r[_SRC + 3]
        out = r[_DST + 1] + i0 * r[_DST + 2] + i1 * r[_DST + 3] + row * r[_DST + 4]
        if r[_ALONG_ROWS]:
            source += row * r[_SRC + 4]
            call_convert(r[LOAD], source, r[_SRC + 5], r[_SRC], n, scratch)
            for k in range(n_out):
                total = 0.0
                for t in range(starts[k], starts[k + 1]):
                    total += weights[t] * x[places[t]]
                y[k] = real(total)
        else:
            y[:] = 0
            for t in range(starts[row], starts[row + 1]):
                place, weight = source + places[t] * r[_SRC + 4], real(weights[t])
                call_convert(r[LOAD], place, r[_SRC + 5], r[_SRC], n, scratch)
                for j in range(n):
                    y[j] += weight * x[j]
        call_convert(r[STORE], y_place, length, r[_DST], out, r[_DST + 5])


_TAPS = both_kernels(add_taps, fastmath={"contract", "nsz"})
