"""The quantised types of 256 elements in NumPy: Q2_K to Q8_K of ggml; see quants.py.

A block of 256 is cut into groups of 16 or 32 with a scale (and a minimum) each, and these are
integers too, times one float16 for the whole block. Finding a group's scale is a search over a
few candidates for the least weighted error; the levels are then rounded anew with the scale that
the bytes will say. Q8_K is simpler: one float32 scale, and sums of levels behind them. It is what
llama.cpp rounds to whatever meets the others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.quant_parts import (
    TINY,
    Bytes,
    Floats,
    Ints,
    extreme_of,
    f32,
    half_at,
    half_bytes,
    nearest,
    ordered_sum,
    pack,
    unpack,
)


def _fit_range(
    x: Floats, weights: Floats, highest: int, first: float, n_steps: int, absolute: bool
) -> tuple[Floats, Floats, Ints]:
    """Scale, offset and levels in [0, highest] with x near scale · level - offset.

    (n, size) groups. Each step tries levels for a slightly larger count than `highest` and the
    scale and minimum that then fit best; `absolute` weighs magnitudes of errors, not squares.
    """
    low, high = np.minimum(x.min(1), f32(0)), x.max(1)
    flat = high == low
    sum_w, sum_x = ordered_sum(weights), ordered_sum(weights * x)

    def levels_for(count: Any) -> Ints:
        steps = (f32(count) / (high - low))[:, None]
        return np.clip(nearest(steps * (x - low[:, None])), 0, highest)

    def error(scale: Floats, minimum: Floats, levels: Ints) -> Floats:
        off = scale[:, None] * levels.astype(np.float32) + minimum[:, None] - x
        return ordered_sum(weights * (np.abs(off) if absolute else off * off))

    levels = levels_for(highest)
    scale = f32(1) / (f32(highest) / (high - low))
    best = error(scale, low, levels)
    for step in range(n_steps + 1):
        tried = levels_for(f32(first) + f32(0.1) * f32(step) + f32(highest))
        real = tried.astype(np.float32)
        sum_l, sum_l2 = ordered_sum(weights * real), ordered_sum(weights * real * real)
        sum_xl = ordered_sum(weights * real * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        positive = new_low > 0
        new_scale = np.where(positive, sum_xl / sum_l2, new_scale)
        new_low = np.where(positive, f32(0), new_low)
        new_error = error(new_scale, new_low, tried)
        better = (det > 0) & (new_error < best)
        levels = np.where(better[:, None], tried, levels)
        best = np.where(better, new_error, best)
        scale = np.where(better, new_scale, scale)
        low = np.where(better, new_low, low)  # later steps start from it
    scale, levels = np.where(flat, f32(0), scale), np.where(flat[:, None], 0, levels)
    return scale, -low, levels


def _fit_scale(x: Floats, half: int) -> tuple[Floats, Ints]:
    """Scale and levels in [0, 2 half) with x near scale · (level - half), by 19 candidates."""
    extreme = extreme_of(x)[:, 0]
    weights = x * x

    def levels_for(steps: Floats) -> tuple[Ints, Floats, Floats]:
        levels = np.clip(nearest(steps[:, None] * x), -half, half - 1)
        real = levels.astype(np.float32)
        return levels, ordered_sum(weights * x * real), ordered_sum(weights * real * real)

    levels, sum_xl, sum_l2 = levels_for(f32(-half) / extreme)
    scale = np.where(sum_l2 != 0, sum_xl / sum_l2, f32(0))
    best = scale * sum_xl
    for step in (*range(-9, 0), *range(1, 10)):
        tried, sum_xl, sum_l2 = levels_for(-(f32(half) + f32(0.1) * f32(step)) / extreme)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        levels = np.where(better[:, None], tried, levels)
        scale = np.where(better, sum_xl / sum_l2, scale)
        best = np.where(better, scale * sum_xl, best)
    zero = np.abs(extreme) < TINY
    return np.where(zero, f32(0), scale), np.where(zero[:, None], 0, levels + half)


def _fit_stepwise(x: Floats, half: int) -> tuple[Floats, Ints]:
    """As `_fit_scale`, but one level after the other moves to where the scale then fits best."""
    extreme = extreme_of(x)[:, 0]
    weights = x * x
    levels = np.clip(nearest((f32(-half) / extreme)[:, None] * x), -half, half - 1)
    real = levels.astype(np.float32)
    sum_xl, sum_l2 = ordered_sum(weights * x * real), ordered_sum(weights * real * real)
    active = np.ones(len(x), bool)
    for _ in range(5):
        changed = np.zeros(len(x), bool)
        for i in range(x.shape[1]):
            w, xi, old = weights[:, i], x[:, i], levels[:, i].astype(np.float32)
            without_xl, without_l2 = sum_xl - w * xi * old, sum_l2 - w * old * old
            new = np.clip(nearest(xi * without_l2 / without_xl), -half, half - 1)
            real_new = new.astype(np.float32)
            new_xl, new_l2 = without_xl + w * xi * real_new, without_l2 + w * real_new * real_new
            better = active & (without_xl > 0) & (new != levels[:, i]) & (new_l2 > 0)
            better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            levels[:, i] = np.where(better, new, levels[:, i])
            sum_xl, sum_l2 = np.where(better, new_xl, sum_xl), np.where(better, new_l2, sum_l2)
            changed |= better
        active &= changed
    scale = np.where(sum_l2 > 0, sum_xl / sum_l2, f32(0))
    zero = np.abs(extreme) < TINY
    return np.where(zero, f32(0), scale), np.where(zero[:, None], 0, levels + half)


def _quantize_with_minimum(
    x: Floats, weights: Floats, bits: int, scale_bits: int, first: float, n_steps: int
) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Float16 scale and minimum, their levels per group, and the levels of all elements.

    (groups of all blocks, size) in; (n, 2), (n, 2), (n, groups), (n, groups) and (n, 256) out.
    """
    n, highest = x.size // 256, (1 << bits) - 1
    scales, offsets, levels = _fit_range(x, weights, highest, first, n_steps, bits == 2)
    stored, steps = [], []
    for values in (scales.reshape(n, -1), offsets.reshape(n, -1)):
        largest = np.maximum(values.max(1, keepdims=True), f32(0))
        top = f32((1 << scale_bits) - 1)
        inverse = np.where(largest > 0, top / largest, f32(0))
        steps.append(np.minimum(nearest(inverse * values).astype(np.uint8), np.uint8(top)))
        stored.append(half_bytes(largest / top))
    d, dmin = ((half_at(h, 0) * s).reshape(-1, 1) for h, s in zip(stored, steps, strict=True))
    again = np.clip(nearest((x + dmin) / d), 0, highest)
    levels = np.where(d != 0, again, levels).reshape(n, 256)
    return stored[0], stored[1], np.stack(steps, 1), levels.astype(np.uint8)


def _pack_six(scales: Bytes, minima: Bytes) -> Bytes:
    """Two times eight numbers of six bits as twelve bytes."""
    low = np.concatenate([scales[:, :4], minima[:, :4]], axis=1)
    high = np.concatenate([scales[:, 4:], minima[:, 4:]], axis=1)
    both = (scales[:, 4:] & 15) | (minima[:, 4:] << 4)
    return np.concatenate([low | (high >> 4 << 6), both], axis=1)


def _unpack_six(b: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima, (n, 8) each; the inverse of `_pack_six`."""
    top = b[:, :8] >> 6 << 4
    scales = np.concatenate([b[:, :4] & 63, (b[:, 8:] & 15) | top[:, :4]], axis=1)
    minima = np.concatenate([b[:, 4:8] & 63, (b[:, 8:] >> 4) | top[:, 4:]], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _expand(levels: NDArray[np.generic], scales: Floats, minima: Floats | None = None) -> Floats:
    """scale · level - minimum, groups along the second axis of (n, groups) scales."""
    groups = levels.astype(np.float32).reshape(*scales.shape, -1) * scales[..., None]
    if minima is not None:
        groups = groups - minima[..., None]
    return groups.reshape(len(levels), -1)


def quantize_q2(x: Floats) -> Bytes:
    """(n, 256) float32 to blocks of 84 bytes."""
    groups = x.reshape(-1, 16)
    d, dmin, steps, q = _quantize_with_minimum(groups, np.abs(groups), 2, 4, -0.5, 15)
    return np.concatenate([steps[:, 0] | (steps[:, 1] << 4), pack(q, 2, 32), d, dmin], axis=1)


def dequantize_q2(b: Bytes) -> Floats:
    """Blocks of 84 bytes to (n, 256) float32."""
    scales = (b[:, :16] & 15).astype(np.float32) * half_at(b, 80)
    minima = (b[:, :16] >> 4).astype(np.float32) * half_at(b, 82)
    return _expand(unpack(b[:, 16:80], 2, 32), scales, minima)


def quantize_q3(x: Floats) -> Bytes:
    """(n, 256) float32 to blocks of 110 bytes."""
    n, groups = len(x), x.reshape(-1, 16)
    fitted, levels = _fit_stepwise(groups, 4)
    scales = fitted.reshape(n, 16)
    extreme = extreme_of(scales)
    inverse = f32(-32) / extreme
    steps = np.clip(nearest(inverse * scales), -32, 31) + 32
    steps = np.where(extreme != 0, steps, 0).astype(np.uint8)
    unit = half_bytes(np.where(extreme != 0, f32(1) / inverse, f32(0)))
    d = (half_at(unit, 0) * (steps.astype(np.float32) - 32)).reshape(-1, 1)
    again = np.clip(nearest(groups / d), -4, 3) + 4
    q = np.where(d != 0, again, levels).reshape(n, 256).astype(np.uint8)
    packed = [pack(q >> 2, 1, 32), pack(q & 3, 2, 32)]
    packed += [pack(steps & 15, 4, 8), pack(steps >> 4, 2, 4), unit]
    return np.concatenate(packed, axis=1)


def dequantize_q3(b: Bytes) -> Floats:
    """Blocks of 110 bytes to (n, 256) float32."""
    q = unpack(b[:, 32:96], 2, 32) | (unpack(b[:, :32], 1, 32) << 2)
    steps = unpack(b[:, 96:104], 4, 8) | (unpack(b[:, 104:108], 2, 4) << 4)
    scales = (steps.astype(np.float32) - 32) * half_at(b, 108)
    return _expand(q.astype(np.int8) - 4, scales)


def _weights(groups: Floats) -> Floats:
    mean = np.sqrt(ordered_sum(groups * groups) / f32(32))
    return mean[:, None] + np.abs(groups)


def quantize_q4(x: Floats) -> Bytes:
    """(n, 256) float32 to blocks of 144 bytes."""
    groups = x.reshape(-1, 32)
    d, dmin, steps, q = _quantize_with_minimum(groups, _weights(groups), 4, 6, -1.0, 20)
    return np.concatenate([d, dmin, _pack_six(steps[:, 0], steps[:, 1]), pack(q, 4, 32)], axis=1)


def dequantize_q4(b: Bytes) -> Floats:
    """Blocks of 144 bytes to (n, 256) float32."""
    scales, minima = _unpack_six(b[:, 4:16])
    q = unpack(b[:, 16:], 4, 32)
    return _expand(q, scales * half_at(b, 0), minima * half_at(b, 2))


def quantize_q5(x: Floats) -> Bytes:
    """(n, 256) float32 to blocks of 176 bytes."""
    groups = x.reshape(-1, 32)
    d, dmin, steps, q = _quantize_with_minimum(groups, _weights(groups), 5, 6, -0.5, 15)
    packed = [d, dmin, _pack_six(steps[:, 0], steps[:, 1]), pack(q >> 4, 1, 32)]
    return np.concatenate([*packed, pack(q & 15, 4, 32)], axis=1)


def dequantize_q5(b: Bytes) -> Floats:
    """Blocks of 176 bytes to (n, 256) float32."""
    scales, minima = _unpack_six(b[:, 4:16])
    q = unpack(b[:, 48:], 4, 32) | (unpack(b[:, 16:48], 1, 32) << 4)
    return _expand(q, scales * half_at(b, 0), minima * half_at(b, 2))


def quantize_q6(x: Floats) -> Bytes:
    """(n, 256) float32 to blocks of 210 bytes."""
    n, groups = len(x), x.reshape(-1, 16)
    fitted, levels = _fit_scale(groups, 32)
    scales = fitted.reshape(n, 16)
    extreme = extreme_of(scales)
    inverse = f32(-128) / extreme
    steps = np.minimum(nearest(inverse * scales), 127).astype(np.int8)
    unit = half_bytes(f32(1) / inverse)
    d = (half_at(unit, 0) * steps).reshape(-1, 1)
    again = np.clip(nearest(groups / d), -32, 31) + 32
    q = np.where(d != 0, again, levels).reshape(n, 256).astype(np.uint8)
    packed = [pack(q & 15, 4, 64), pack(q >> 4, 2, 32), steps.view(np.uint8), unit]
    blocks = np.concatenate(packed, axis=1)
    blocks[np.abs(extreme[:, 0]) < TINY] = 0
    return blocks


def dequantize_q6(b: Bytes) -> Floats:
    """Blocks of 210 bytes to (n, 256) float32."""
    q = unpack(b[:, :128], 4, 64) | (unpack(b[:, 128:192], 2, 32) << 4)
    scales = b[:, 192:208].view(np.int8).astype(np.float32) * half_at(b, 208)
    return _expand(q.astype(np.int8) - 32, scales)


def quantize_q8(x: Floats) -> Bytes:
    """Q8_K: float32 scale, 256 levels, their sums by sixteens."""
    x = np.where(np.isnan(x), f32(0), x)
    extreme = extreme_of(x)
    some = extreme != 0
    inverse = np.where(some, f32(-127) / extreme, f32(0))
    levels = np.clip(nearest(inverse * x), -128, 127)
    d = np.where(some, f32(1) / inverse, f32(0)).astype(np.float32)
    sums = levels.reshape(-1, 16, 16).sum(2).astype(np.int16)
    parts = d, levels.astype(np.int8), sums
    return np.concatenate([part.view(np.uint8) for part in parts], axis=1)


def dequantize_q8(b: Bytes) -> Floats:
    """The inverse of `quantize_q8`."""
    scale: Floats = b[:, :4].copy().view(np.float32)
    return scale * b[:, 4:260].view(np.int8).astype(np.float32)
