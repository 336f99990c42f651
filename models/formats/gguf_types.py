"""The numbers of the GGUF format: value types of metadata, and types of tensors."""

from dataclasses import dataclass

import numpy as np

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_AXES = 4
MAX_ENTRIES = 1 << 18  # tensors, or metadata; the largest models have 10^5, and each takes memory
MAX_NAME_BYTES = 63  # llama.cpp holds a tensor's name in 64 bytes with a closing zero


@dataclass(frozen=True, slots=True)
class ValueType:
    """A metadata type: number in the file, name, and how one scalar is packed (None: text)."""

    number: int
    name: str
    dtype: str | None  # NumPy's letter and size without byte order

    @property
    def size(self) -> int:
        """Bytes of one scalar; a string takes at least its length field, checked apart."""
        return 0 if self.dtype is None else np.dtype(self.dtype).itemsize


VALUE_TYPES = {
    t.number: t
    for t in (
        ValueType(0, "UINT8", "u1"),
        ValueType(1, "INT8", "i1"),
        ValueType(2, "UINT16", "u2"),
        ValueType(3, "INT16", "i2"),
        ValueType(4, "UINT32", "u4"),
        ValueType(5, "INT32", "i4"),
        ValueType(6, "FLOAT32", "f4"),
        ValueType(7, "BOOL", "u1"),  # one byte; anything but 0 is true
        ValueType(8, "STRING", None),
        ValueType(10, "UINT64", "u8"),
        ValueType(11, "INT64", "i8"),
        ValueType(12, "FLOAT64", "f8"),
    )
}
VALUE_TYPE_BY_NAME = {t.name: t for t in VALUE_TYPES.values()}
ARRAY = 9
BOOL = VALUE_TYPE_BY_NAME["BOOL"]
STRING = VALUE_TYPE_BY_NAME["STRING"]
NESTED = ValueType(ARRAY, "ARRAY", None)  # of elements that are arrays themselves
MAX_DEPTH = 8  # of arrays in each other


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor type: number in the file, name, and bytes per block of elements of a row."""

    number: int
    name: str
    block: int  # elements per block; 1 for plain types
    size: int  # bytes per block
    dtype: str | None = None  # how NumPy sees a plain type; bf16 is seen as its 16 bits


TENSOR_TYPES = {
    t.number: t
    for t in (
        TensorType(0, "F32", 1, 4, "f4"),
        TensorType(1, "F16", 1, 2, "f2"),
        TensorType(2, "Q4_0", 32, 18),
        TensorType(3, "Q4_1", 32, 20),
        TensorType(6, "Q5_0", 32, 22),
        TensorType(7, "Q5_1", 32, 24),
        TensorType(8, "Q8_0", 32, 34),
        TensorType(9, "Q8_1", 32, 36),
        TensorType(10, "Q2_K", 256, 84),
        TensorType(11, "Q3_K", 256, 110),
        TensorType(12, "Q4_K", 256, 144),
        TensorType(13, "Q5_K", 256, 176),
        TensorType(14, "Q6_K", 256, 210),
        TensorType(15, "Q8_K", 256, 292),
        TensorType(16, "IQ2_XXS", 256, 66),
        TensorType(17, "IQ2_XS", 256, 74),
        TensorType(18, "IQ3_XXS", 256, 98),
        TensorType(19, "IQ1_S", 256, 50),
        TensorType(20, "IQ4_NL", 32, 18),
        TensorType(21, "IQ3_S", 256, 110),
        TensorType(22, "IQ2_S", 256, 82),
        TensorType(23, "IQ4_XS", 256, 136),
        TensorType(24, "I8", 1, 1, "i1"),
        TensorType(25, "I16", 1, 2, "i2"),
        TensorType(26, "I32", 1, 4, "i4"),
        TensorType(27, "I64", 1, 8, "i8"),
        TensorType(28, "F64", 1, 8, "f8"),
        TensorType(29, "IQ1_M", 256, 56),
        TensorType(30, "BF16", 1, 2, "u2"),
        TensorType(34, "TQ1_0", 256, 54),
        TensorType(35, "TQ2_0", 256, 66),
        TensorType(39, "MXFP4", 32, 17),
        TensorType(40, "NVFP4", 64, 36),
        TensorType(41, "Q1_0", 128, 18),
    )
}
TENSOR_TYPE_BY_NAME = {t.name: t for t in TENSOR_TYPES.values()}
# What an array of NumPy becomes when its type is not said; uint16 may be bf16, so it must be.
TENSOR_TYPE_BY_DTYPE = {
    np.dtype(t.dtype): t for t in TENSOR_TYPES.values() if t.dtype and t.name != "BF16"
}


def row_bytes(kind: TensorType, shape: tuple[int, ...]) -> int | None:
    """Bytes of one row (the last axis) of `shape`, or None where blocks do not divide it.

    >>> row_bytes(TENSOR_TYPE_BY_NAME["Q8_0"], (2, 64)), row_bytes(TENSOR_TYPES[8], (2, 40))
    (68, None)
    """
    width = shape[-1] if shape else 1
    return None if width % kind.block else width // kind.block * kind.size
