"""What the definitions of quantised types share: float32 rounded as in C, and fields of bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[Any]  # uint8; NumPy's annotations take uint8 & 15 for a signed type
Floats = NDArray[Any]  # float32
Ints = NDArray[np.int32]

f32 = np.float32
TINY = f32(1e-15)  # a group whose largest magnitude is below counts as zeros
_MAGIC = f32(1.5 * 2**23)  # added to a float32, it pushes the fraction out of the last bit


def nearest(x: Floats) -> Ints:
    """The nearest integers, ties to even; beyond 22 bits the low bits, as in C."""
    found: Ints = ((x + _MAGIC).view(np.int32) & 0x7FFFFF) - 0x400000
    return found


def ordered_sum(terms: Floats) -> Floats:
    """Sums along the last axis, strictly from left to right: bits depend on the order."""
    total: Floats = np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1]
    return total


def extreme_of(x: Floats) -> Floats:
    """(n, 1): the element of largest magnitude in each row, the first where several are."""
    found: Floats = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    return found


def half_bytes(x: Floats) -> Bytes:
    """(n, 2): a number for each block, rounded to float16."""
    return x.astype(np.float16).view(np.uint8).reshape(-1, 2)


def half_at(b: Bytes, at: int) -> Floats:
    """(n, 1) float32 from the float16 at byte `at` of each block."""
    return b[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def pack(levels: Bytes, bits: int, per_line: int) -> Bytes:
    """Fields of `bits` bits: a byte holds elements `per_line` apart."""
    n, per_byte = len(levels), 8 // bits
    fields = levels.reshape(n, -1, per_byte, per_line)
    packed = np.zeros((n, fields.shape[1], per_line), np.uint8)
    for k in range(per_byte):
        packed |= fields[:, :, k] << (bits * k)
    return packed.reshape(n, -1)


def unpack(b: Bytes, bits: int, per_line: int) -> Bytes:
    """The inverse of `pack`."""
    lines = b.reshape(len(b), -1, 1, per_line)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (lines >> shifts & np.uint8((1 << bits) - 1)).reshape(len(b), -1)
