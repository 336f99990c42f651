"""The quantised types of ggml whose levels are not evenly spaced: IQ4_NL and IQ4_XS; see quants.py.

Four bits choose one of sixteen whole numbers, which lie closer together near zero, where most
weights are. IQ4_NL has a float16 scale for 32 elements. IQ4_XS has one for 256, and six bits for
every 32 that multiply it.

Source: ggml-quants.c, quantize_row_iq4_nl_impl as a file's quantiser calls it without an importance
matrix, and dequantize_row_iq4_*.
"""

from itertools import pairwise

import numpy as np

from yupana.graphlib.quant_parts import (
    TINY,
    Bytes,
    Floats,
    extreme_of,
    f32,
    half_at,
    half_bytes,
    nearest,
    ordered_sum,
    pack,
    unpack,
)

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Where the next level becomes the nearest one; a number between two takes the higher.
EDGES = tuple((low + high) / 2 for low, high in pairwise(LEVELS))
TRIES = 7  # scales above and below the first that are tried
_LEVELS, _EDGES = np.array(LEVELS, np.float32), np.array(EDGES, np.float32)


def _chosen(x: Floats) -> Bytes:
    """The numbers of the nearest levels; a NaN has the last."""
    return np.searchsorted(_EDGES, x, side="right").astype(np.uint8)


def _fitted(x: Floats) -> Floats:
    """(n, 1): of groups (n, 32) the scale with which levels come nearest, of sixteen tried."""
    extreme, weights = extreme_of(x), x * x
    lowest = f32(LEVELS[0])
    inverses = [f32(1) / (-extreme / lowest)]
    inverses += [(f32(step) + lowest) / extreme for step in range(-TRIES, TRIES + 1)]
    scale = best = np.zeros_like(extreme)
    for i, inverse in enumerate(inverses):
        levels = _LEVELS[_chosen(inverse * x)]
        sum_xl = ordered_sum(weights * levels * x)[:, None]
        sum_l2 = ordered_sum(weights * levels * levels)[:, None]
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2) if i else True
        scale = np.where(better, sum_xl / sum_l2, scale)
        best = np.where(better, scale * sum_xl, best)
    return np.where(np.abs(extreme) < TINY, f32(0), scale)


def _inverse(x: Floats) -> Floats:
    return np.where(x != 0, f32(1) / x, f32(0))


def quantize_iq4_nl(x: Floats) -> Bytes:
    """(n, 32) float32 to blocks of 18 bytes."""
    scale = _fitted(x)
    return np.concatenate([half_bytes(scale), pack(_chosen(_inverse(scale) * x), 4, 16)], axis=1)


def dequantize_iq4_nl(b: Bytes) -> Floats:
    """Blocks of 18 bytes to (n, 32) float32."""
    return _LEVELS[unpack(b[:, 2:], 4, 16)] * half_at(b, 0)


def quantize_iq4_xs(x: Floats) -> Bytes:
    """(n, 256) float32 to blocks of 136 bytes."""
    n, groups = len(x), x.reshape(-1, 32)
    scales = _fitted(groups).reshape(n, 8)
    unit = -extreme_of(scales) / f32(32)
    steps = np.clip(nearest(_inverse(unit) * scales), -32, 31)
    inverse = _inverse(unit * steps.astype(np.float32)).reshape(-1, 1)
    levels = _chosen(inverse * groups).reshape(n, 256)
    six = (steps + 32).astype(np.uint8)
    high = (six >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    packed = [half_bytes(unit), np.bitwise_or.reduce(high, axis=1)[:, None].view(np.uint8)]
    return np.concatenate([*packed, pack(six & 15, 4, 1), pack(levels, 4, 16)], axis=1)


def dequantize_iq4_xs(b: Bytes) -> Floats:
    """Blocks of 136 bytes to (n, 256) float32."""
    six = unpack(b[:, 4:8], 4, 1) | unpack(b[:, 2:4], 2, 1) << 4
    scales = half_at(b, 0) * (six.astype(np.float32) - 32)
    lines = _LEVELS[unpack(b[:, 8:], 4, 16)].reshape(-1, 8, 32) * scales[..., None]
    expanded: Floats = lines.reshape(-1, 256)
    return expanded
