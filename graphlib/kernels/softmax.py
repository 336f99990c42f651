"""Soft maximum of rows, with scale, additive mask and causal limit in one pass."""

import numpy as np

from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.math import LOWEST, exp, row_max
from yupana.graphlib.kernels.rowwise import Rows, row_dot
from yupana.graphlib.kernels.step import Step

_STEP = 64  # elements; shorter pieces, and what is left over behind them, are slower
_OPTIONS = {"error_model": "numpy", "forceinline": True}
_FASTMATH = {"contract", "nsz", "reassoc"}


@for_kernels(fastmath=_FASTMATH, **_OPTIONS)
def _normalise(y):
    """Turn a row of scores into its soft maximum.

    A row of -inf becomes zeros, and so does what would be denormal in float32: that would take
    the processor several times as long, and every hidden element comes by there.
    """
    real = y.dtype.type
    lowest = real(LOWEST)
    largest = row_max(y)
    if largest == real(-np.inf):
        largest = real(0)  # -inf - -inf would be NaN
    total = real(0)
    for j in range(y.size):
        z = y[j] - largest
        e = exp(lowest if z < lowest else z)
        e = real(0) if z < lowest else e
        y[j] = e
        total += e
    inverse = real(0) if total == real(0) else real(1) / total
    for j in range(y.size):
        y[j] *= inverse


def _soft_max(y, x, i, p):
    real = y.dtype.type
    scale, hidden = real(p[0]), real(-np.inf)
    # Row i sees all columns, or n_past + i + 1; those computed are whole steps of a vector loop.
    n = y.size if p[1] < 0 else min(y.size, int(p[1]) + i + 1)
    end = min(y.size, (n + _STEP - 1) // _STEP * _STEP)
    for j in range(end):
        y[j] = x[j] * scale if j < n else hidden
    _normalise(y[:end])
    for j in range(end, y.size):
        y[j] = real(0)


@for_kernels(**_OPTIONS)
def slope_of(head, max_bias, n):
    """What the mask of a head is multiplied with; ops/masks.py says why. n: `slopes_from`."""
    exponent = head + 1.0 if head < n else head - n + 0.5
    return 2.0 ** (-max_bias / n * exponent)


def slopes_from(heads: int) -> float:
    """The largest power of two in a number of heads."""
    return float(1 << max(heads.bit_length() - 1, 0))


def _masked_soft_max(y, x, mask, i, p):
    real = y.dtype.type
    scale, slope = real(p[0]), real(1)
    if p[1] > 0:  # row i is one of the rows (p[2]) of a head
        slope = real(slope_of(float(i // int(p[2])), p[1], p[3]))
    for j in range(y.size):
        y[j] = x[j] * scale + slope * mask[j]
    _normalise(y)


def _soft_max_back(y, g, s, i, p):
    scale, product = y.dtype.type(p[0]), row_dot(g, s)
    for j in range(y.size):
        y[j] = scale * s[j] * (g[j] - product)


_plain = Rows(_soft_max, 1, ns=0.5, row_ns=16)
_masked = Rows(_masked_soft_max, 2, ns=0.5, row_ns=16)
_back = Rows(_soft_max_back, 2, ns=0.2)
_EVERYTHING = -1.0  # n_past of rows that see all columns


def soft_max_steps(
    dst: View, src: View, mask: View | None, scale: float, max_bias: float = 0.0
) -> list[Step]:
    """Soft maximum of the rows of `scale * src + mask`; the mask is broadcast over outer axes.

    With `max_bias` above 0 the mask of each head (axis -3) is multiplied with the head's slope.
    """
    if mask is not None and max_bias > 0:
        heads, rows = ((1, 1, *dst.shape)[-3:])[:2]
        settings = [scale, max_bias, float(rows), slopes_from(heads)]
        return _masked.steps(dst, [src, mask], settings, period=heads * rows)
    if mask is not None:
        return _masked.steps(dst, [src, mask], [scale])
    return _plain.steps(dst, [src], [scale, _EVERYTHING])


def causal_soft_max_steps(dst: View, src: View, scale: float, n_past: int) -> list[Step]:
    """Soft maximum of `scale * src` where row i (of axis -2) sees columns up to `n_past + i`.

    What scale, diag_mask_inf and soft_max compute one after the other; the masked half of the
    columns costs nothing.
    """
    return _plain.steps(dst, [src], [scale, float(n_past)])


def soft_max_back_steps(dst: View, grad: View, y: View, scale: float) -> list[Step]:
    """`scale * y * (grad - <y, grad>)`, row by row."""
    return _back.steps(dst, [grad, y], [scale])
