"""The numbers inside tensors' bytes: as arrays, in our byte order, and whether they are finite."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_types import TensorType, row_bytes

Array = np.ndarray[Any, Any]

_OURS = "<" if sys.byteorder == "little" else ">"
_STEP = 1 << 21  # blocks looked at together, so that large tensors take no large temporaries

# Where the float16 scales and minima stand in a block (ggml-common.h).
_HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q8_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ3_XXS": (0,), "IQ1_S": (0,), "IQ4_NL": (0,),
    "IQ3_S": (0,), "IQ2_S": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "Q1_0": (0,),
}  # fmt: skip
_FIFTH_BITS = {"Q5_0": 2, "Q5_1": 4}  # which ggml stores as one 32-bit number
_SCALE_BITS = {"IQ4_XS": (2,)}  # as one 16-bit number

# Numbers that are infinite or no numbers have all these bits set: byte in the block, type, bits.
_EXPONENTS: dict[str, tuple[tuple[int, str, int], ...]] = {
    "F32": ((0, "u4", 0x7F800000),),
    "F16": ((0, "u2", 0x7C00),),
    "BF16": ((0, "u2", 0x7F80),),
    "F64": ((0, "u8", 0x7FF << 52),),
    "Q8_K": ((0, "u4", 0x7F800000),),
    "MXFP4": ((0, "u1", 0xFF),),  # a power of two, whose last value means no number
} | {name: tuple((at, "u2", 0x7C00) for at in places) for name, places in _HALVES.items()}
# Its scale is spread over the high bits of four 16-bit numbers, the exponent over the last two.
_IQ1_M = {"<": ((52, "u4", 0x7000C000),), ">": ((52, "u4", 0xC0007000),)}


def as_array(raw: Array, kind: TensorType, shape: tuple[int, ...], order: str) -> Array:
    """Bytes as numbers of a plain type, else as the bytes of each row.

    Args:
        raw: (bytes of the tensor,) uint8.
        shape: of the tensor.
        order: "<" or ">", of the file.
    """
    if kind.dtype is not None:
        return raw.view(order + kind.dtype).reshape(shape)
    width = row_bytes(kind, shape)
    assert width is not None  # checked when the file was opened
    return raw.reshape((*shape[:-1], width))


def native(data: Array, kind: TensorType, order: str) -> Array:
    """What `as_array` gave in this machine's byte order: itself where it is so already."""
    if order == _OURS:
        return data
    if kind.dtype is not None:
        return data.astype(_OURS + kind.dtype)
    swapped = data.copy()
    blocks = swapped.reshape(-1, kind.size)
    for at in (*_HALVES[kind.name], *_SCALE_BITS.get(kind.name, ())):
        blocks[:, at : at + 2] = blocks[:, [at + 1, at]]
    if kind.name in _FIFTH_BITS:
        at = _FIFTH_BITS[kind.name]
        blocks[:, at : at + 4] = blocks[:, [at + 3, at + 2, at + 1, at]]
    return swapped


def check_finite(
    path: Path, name: str, raw: Array, kind: TensorType, order: str, offset: int
) -> None:
    """Raise unless every number, or every scale of quantised blocks, is finite.

    Args:
        path, name: of the file and the tensor, for the error.
        raw: (bytes of the tensor,) uint8.
        offset: of its first byte in the file.

    Raises:
        FileFormatError: names the tensor, the first bad block of its kind and its byte.
    """
    fields = _IQ1_M[order] if kind.name == "IQ1_M" else _EXPONENTS.get(kind.name, ())
    n_blocks = len(raw) // kind.size
    for at, dtype, bits in fields:
        numbers: Array = np.ndarray((n_blocks,), order + dtype, raw, at, (kind.size,))
        for start in range(0, n_blocks, _STEP):
            bad = (numbers[start : start + _STEP] & bits) == bits
            if bad.any():
                block = start + int(bad.argmax())
                what = "element" if kind.block == 1 else "scale of block"
                raise FileFormatError(
                    f"{path}: {what} {block} of tensor {shown(name)} ({kind.name}) at byte "
                    f"{offset + block * kind.size + at}: got an infinite value or no number, want "
                    "finite numbers. The file is damaged, or was made from a model that diverged."
                )
