"""Quantised types in NumPy: what ggml's blocks hold, and how ggml fills them.

A row is cut into blocks of 32 or 256 elements; a block stores small integers and the float16
scales that turn them back. This is the definition that the kernels are held to: float32, every
operation rounded where it stands and sums taken from left to right, as the C code of ggml reads.
The formats of 256 elements are in quants_k.py, those with levels from a list in quants_iq.py.

Source: ggml-quants.c, the functions quantize_row_*_ref and dequantize_row_*.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib import quants_iq, quants_k
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.quant_parts import (
    Bytes,
    Floats,
    extreme_of,
    f32,
    half_at,
    half_bytes,
    pack,
    unpack,
)

_HALF = 16  # the second half of a block lies in the high bits of the bytes of the first


@dataclass(frozen=True, slots=True)
class Format:
    """A block: how many elements, how many bytes, ggml's number, and both directions.

    `quantize` takes (n, block) float32 and gives (n, nbytes) bytes, `dequantize` the reverse.
    """

    name: str
    block: int
    nbytes: int
    ggml_id: int
    quantize: Callable[[Floats], Bytes]
    dequantize: Callable[[Bytes], Floats]


def quantize(values: ArrayLike, name: str) -> Bytes:
    """The bytes of rows of numbers in a quantised type, as ggml would store them.

    Args:
        values: (…, n), n a multiple of the type's block; rounded to float32 first.
        name: of the type, as "Q4_K".
    Returns:
        (…, n / block · bytes of a block) uint8.
    Raises:
        DtypeError: no such type. ShapeError: rows that are not whole blocks.

    >>> quantize([0.0] * 31 + [127.0], "Q8_0")[-3:]
    array([  0,   0, 127], dtype=uint8)
    """
    fmt = format_of(name)
    array = np.asarray(values, np.float32)
    if array.ndim == 0 or array.shape[-1] % fmt.block:
        raise ShapeError(
            f"quantize: rows must be whole blocks: got shape {array.shape}, want the last axis a "
            f"multiple of {fmt.block} for {name}"
        )
    shape = (*array.shape[:-1], array.shape[-1] // fmt.block * fmt.nbytes)
    if array.size == 0:
        return np.zeros(shape, np.uint8)
    with np.errstate(all="ignore"):  # C divides by zero, and overflows, in silence
        return fmt.quantize(array.reshape(-1, fmt.block)).reshape(shape)


def dequantize(stored: ArrayLike, name: str) -> Floats:
    """The numbers that rows of bytes of a quantised type stand for: the inverse of `quantize`.

    >>> dequantize(quantize([1.0] * 32, "Q4_0"), "Q4_0")[:2]
    array([1., 1.], dtype=float32)
    """
    fmt = format_of(name)
    array = np.ascontiguousarray(stored, np.uint8)
    if array.ndim == 0 or array.shape[-1] % fmt.nbytes:
        raise ShapeError(
            f"dequantize: rows must be whole blocks: got {array.shape} bytes, want the last axis "
            f"a multiple of {fmt.nbytes} for {name}"
        )
    shape = (*array.shape[:-1], array.shape[-1] // fmt.nbytes * fmt.block)
    if array.size == 0:
        return np.zeros(shape, np.float32)
    with np.errstate(all="ignore"):
        return fmt.dequantize(array.reshape(-1, fmt.nbytes)).reshape(shape)


def format_of(name: str) -> Format:
    """The format of this name."""
    if name not in FORMATS:
        raise DtypeError(f"quants: no quantised type {name!r}, want one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _inverse(d: Floats) -> Floats:
    return np.where(d == 0, f32(0), f32(1) / d)


def _levels(x: Floats, highest: int) -> Bytes:
    """Numbers cut to integers in [0, highest]; a NaN becomes the highest."""
    return np.where(x < highest, np.maximum(x, 0), f32(highest)).astype(np.uint8)


def _fifth(q: Bytes) -> Bytes:
    """The fifth bits of 32 levels as four bytes."""
    return np.packbits(q >> 4, axis=1, bitorder="little")


def _unfifth(b: Bytes) -> Bytes:
    return np.unpackbits(b, axis=1, bitorder="little") << 4


def _symmetric(x: Floats, bits: int) -> tuple[Bytes, Bytes]:
    """Scale and levels; the extreme becomes the lowest level, which reaches furthest from zero."""
    middle = 1 << (bits - 1)
    d = (extreme_of(x) + f32(0)) / f32(-middle)  # no negative zero
    q = _levels(x * _inverse(d) + f32(middle + 0.5), 2 * middle - 1)
    return half_bytes(d), q


def _between(x: Floats, bits: int) -> tuple[Bytes, Bytes]:
    """Scale, minimum and levels that run from the least element to the largest."""
    highest = (1 << bits) - 1
    # of zeros of both signs the first
    low = np.take_along_axis(x, x.argmin(1)[:, None], 1)
    high = np.take_along_axis(x, x.argmax(1)[:, None], 1)
    d = (high - low) / f32(highest)
    q = _levels((x - low) * _inverse(d) + f32(0.5), highest)
    return np.concatenate([half_bytes(d), half_bytes(low)], axis=1), q


def _quantize_q4_0(x: Floats) -> Bytes:
    d, q = _symmetric(x, 4)
    return np.concatenate([d, pack(q, 4, _HALF)], axis=1)


def _dequantize_q4_0(b: Bytes) -> Floats:
    return (unpack(b[:, 2:], 4, _HALF).astype(np.float32) - 8) * half_at(b, 0)


def _quantize_q4_1(x: Floats) -> Bytes:
    d_and_low, q = _between(x, 4)
    return np.concatenate([d_and_low, pack(q, 4, _HALF)], axis=1)


def _dequantize_q4_1(b: Bytes) -> Floats:
    return unpack(b[:, 4:], 4, _HALF).astype(np.float32) * half_at(b, 0) + half_at(b, 2)


def _quantize_q5_0(x: Floats) -> Bytes:
    d, q = _symmetric(x, 5)
    return np.concatenate([d, _fifth(q), pack(q & 15, 4, _HALF)], axis=1)


def _dequantize_q5_0(b: Bytes) -> Floats:
    q = unpack(b[:, 6:], 4, _HALF) | _unfifth(b[:, 2:6])
    return (q.astype(np.float32) - 16) * half_at(b, 0)


def _quantize_q5_1(x: Floats) -> Bytes:
    d_and_low, q = _between(x, 5)
    return np.concatenate([d_and_low, _fifth(q), pack(q & 15, 4, _HALF)], axis=1)


def _dequantize_q5_1(b: Bytes) -> Floats:
    q = unpack(b[:, 8:], 4, _HALF) | _unfifth(b[:, 4:8])
    return q.astype(np.float32) * half_at(b, 0) + half_at(b, 2)


def _quantize_q8_0(x: Floats) -> Bytes:
    d = np.abs(x).max(1, keepdims=True) / f32(127)
    scaled = x * _inverse(d)
    # C's roundf, halves away from zero; 0.5 itself would lift the largest number below a half
    rounded = np.trunc(scaled + np.copysign(np.nextafter(f32(0.5), f32(0)), scaled))
    q = np.clip(np.nan_to_num(rounded), -127, 127).astype(np.int8)
    return np.concatenate([half_bytes(d), q.view(np.uint8)], axis=1)


def _dequantize_q8_0(b: Bytes) -> Floats:
    return b[:, 2:].view(np.int8).astype(np.float32) * half_at(b, 0)


def _quantize_q8_1(x: Floats) -> Bytes:
    """As ggml rounds what meets a matrix; a file's Q8_0 is rounded a little otherwise."""
    largest = np.abs(x).max(1, keepdims=True)
    d = largest / f32(127)
    scaled = x * np.where(largest == 0, f32(0), f32(127) / largest)
    q = np.clip(np.rint(np.nan_to_num(scaled)), -127, 127).astype(np.int8)
    sums = d * q.sum(1, dtype=np.int32, keepdims=True).astype(np.float32)
    return np.concatenate([half_bytes(d), half_bytes(sums), q.view(np.uint8)], axis=1)


def _dequantize_q8_1(b: Bytes) -> Floats:
    return _dequantize_q8_0(b[:, [0, 1, *range(4, 36)]])


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("Q4_0", 32, 18, 2, _quantize_q4_0, _dequantize_q4_0),
        Format("Q4_1", 32, 20, 3, _quantize_q4_1, _dequantize_q4_1),
        Format("Q5_0", 32, 22, 6, _quantize_q5_0, _dequantize_q5_0),
        Format("Q5_1", 32, 24, 7, _quantize_q5_1, _dequantize_q5_1),
        Format("Q8_0", 32, 34, 8, _quantize_q8_0, _dequantize_q8_0),
        Format("Q8_1", 32, 36, 9, _quantize_q8_1, _dequantize_q8_1),
        Format("Q2_K", 256, 84, 10, quants_k.quantize_q2, quants_k.dequantize_q2),
        Format("Q3_K", 256, 110, 11, quants_k.quantize_q3, quants_k.dequantize_q3),
        Format("Q4_K", 256, 144, 12, quants_k.quantize_q4, quants_k.dequantize_q4),
        Format("Q5_K", 256, 176, 13, quants_k.quantize_q5, quants_k.dequantize_q5),
        Format("Q6_K", 256, 210, 14, quants_k.quantize_q6, quants_k.dequantize_q6),
        Format("Q8_K", 256, 292, 15, quants_k.quantize_q8, quants_k.dequantize_q8),
        Format("IQ4_NL", 32, 18, 20, quants_iq.quantize_iq4_nl, quants_iq.dequantize_iq4_nl),
        Format("IQ4_XS", 256, 136, 23, quants_iq.quantize_iq4_xs, quants_iq.dequantize_iq4_xs),
    )
}
