"""Data types of tensors: name, size, ggml's number, NumPy storage, and the kernels' code."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib import quants
from yupana.graphlib.errors import DtypeError, ShapeError


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type.

    `storage` is what NumPy sees in memory; NumPy has no bfloat16, so bf16 shows as uint16.
    `ggml_id` is the number GGUF files use. `code` is what kernels switch on.

    Quantised types store `block` elements of a row together in `itemsize` bytes. Their rows
    consist of whole blocks and show in memory as bytes; arithmetic takes them only where an op
    says so.
    """

    name: str
    itemsize: int
    ggml_id: int
    storage: np.dtype[np.generic]
    code: int
    is_float: bool = True
    block: int = 1

    def __repr__(self) -> str:
        return self.name

    @property
    def is_quantized(self) -> bool:
        """Whether elements are stored in blocks."""
        return self.block > 1

    @property
    def is_real(self) -> bool:
        """Whether it stands for real numbers: floats and quantised types."""
        return self.is_float or self.is_quantized

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` elements.

        >>> dtype_of("Q4_0").row_bytes(64)
        36
        """
        return n // self.block * self.itemsize

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the memory as `storage`: rows of quantised types are counted in bytes."""
        return (*shape[:-1], self.row_bytes(shape[-1])) if self.is_quantized else shape

    def stored_strides(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        """Byte strides that go with `stored_shape`."""
        return (*strides[:-1], 1) if self.is_quantized else strides

    def check_shape(self, what: str, shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless rows of this shape are whole blocks."""
        if self.is_quantized and (not shape or shape[-1] % self.block):
            raise ShapeError(
                f"{what}: rows of {self.name} are whole blocks: got shape {shape}, want the last "
                f"axis a multiple of {self.block}"
            )


f32 = Dtype("f32", 4, 0, np.dtype(np.float32), 0)
f16 = Dtype("f16", 2, 1, np.dtype(np.float16), 1)
f64 = Dtype("f64", 8, 28, np.dtype(np.float64), 2)
bf16 = Dtype("bf16", 2, 30, np.dtype(np.uint16), 3)
i32 = Dtype("i32", 4, 26, np.dtype(np.int32), 4, is_float=False)
i8 = Dtype("i8", 1, 24, np.dtype(np.int8), 5, is_float=False)
i16 = Dtype("i16", 2, 25, np.dtype(np.int16), 6, is_float=False)

_QUANTIZED_CODE = 64  # kernels' codes of quantised types: this plus ggml's number
QUANTIZED = {
    fmt.name: Dtype(
        fmt.name,
        fmt.nbytes,
        fmt.ggml_id,
        np.dtype(np.uint8),
        _QUANTIZED_CODE + fmt.ggml_id,
        is_float=False,
        block=fmt.block,
    )
    for fmt in quants.FORMATS.values()
}
DTYPES = {d.name: d for d in (f32, f16, f64, bf16, i32, i16, i8)} | QUANTIZED
_BY_LOWER_NAME = {name.lower(): dtype for name, dtype in DTYPES.items()}


def dtype_of(value: "str | Dtype | np.dtype[np.generic] | type[np.generic]") -> Dtype:
    """The `Dtype` meant by a name, in letters of either case, a NumPy dtype or a `Dtype`.

    >>> dtype_of("bf16"), dtype_of(np.float64), dtype_of("q8_0")
    (bf16, f64, Q8_0)
    """
    if isinstance(value, Dtype):
        return value
    if isinstance(value, str) and value.lower() in _BY_LOWER_NAME:
        return _BY_LOWER_NAME[value.lower()]
    try:
        wanted = np.dtype(value)
    except TypeError:
        pass  # no comparison with None: NumPy takes that for float64
    else:
        for dtype in DTYPES.values():
            if dtype.storage == wanted and dtype is not bf16 and not dtype.is_quantized:
                return dtype
    raise DtypeError(f"dtype: got {value!r}, want one of {', '.join(DTYPES)}")


def to_storage(values: NDArray[np.generic], dtype: Dtype) -> NDArray[np.generic]:
    """`values` rounded to what a tensor of `dtype` holds (bf16 as its uint16 bits).

    Quantised types: the bytes of each row, by their definition in NumPy. Whole numbers: fractions
    are cut off; beyond the range the nearest number, and 0 for NaN, as kernels do.
    """
    if dtype.is_quantized:
        return quants.quantize(values, dtype.name)
    if not dtype.is_float:
        return _to_whole(np.asarray(values), dtype.storage)
    if dtype is not bf16:
        with np.errstate(over="ignore"):  # a value beyond f16 becomes infinity, as in C
            return np.asarray(values).astype(dtype.storage)
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    quiet = (bits >> 16) | 0x40  # rounding could turn a NaN into infinity
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, quiet, rounded).astype(np.uint16)


def _to_whole(values: NDArray[Any], storage: np.dtype[np.generic]) -> NDArray[np.generic]:
    if values.dtype == storage or values.dtype.kind == "b":
        return values.astype(storage)
    limits = np.iinfo(storage.type)  # type: ignore[type-var]
    if values.dtype.kind == "f":  # float64 holds all limits
        values = np.nan_to_num(values.astype(np.float64), nan=0.0)
    cut: NDArray[np.generic] = np.clip(values, limits.min, limits.max).astype(storage)
    return cut


def from_storage(stored: NDArray[np.generic], dtype: Dtype) -> NDArray[np.generic]:
    """The numbers in `stored`; bf16 and quantised types as float32, the rest as it is."""
    if dtype.is_quantized:
        return quants.dequantize(stored, dtype.name)
    if dtype is not bf16:
        return stored
    return (stored.astype(np.uint32) << 16).view(np.float32)
