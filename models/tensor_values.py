"""Tensors of files as numbers, and numbers as the bytes of a type; part by part."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.dtypes import DTYPES, Dtype, dtype_of, from_storage, to_storage
from yupana.graphlib.errors import FileFormatError
from yupana.graphlib.kernels.quant_rows import quantize_rows
from yupana.graphlib.quants import FORMATS
from yupana.models.formats.stored import Array, StoredTensor

_PART = 1 << 20  # elements worked on at a time
_FLOATS = ("F32", "F16", "BF16", "F64")


def dtype_named(type_name: str) -> Dtype | None:
    """The element type of a GGUF type that stands for real numbers; None where there is none.

    >>> dtype_named("F16"), dtype_named("Q4_K"), dtype_named("IQ1_S")
    (f16, Q4_K, None)
    """
    if type_name in _FLOATS:
        return dtype_of(type_name.lower())
    return DTYPES.get(type_name) if type_name in FORMATS else None


def parts_of(tensor: StoredTensor) -> Iterator[tuple[Array, NDArray[np.float32]]]:
    """The tensor some rows at a time: as they are stored, and as (rows, width) float32.

    Raises:
        FileFormatError: its type cannot be read.
    """
    dtype = dtype_named(tensor.type)
    stored = tensor.load()
    if dtype is None and stored.dtype != np.float32:
        raise FileFormatError(
            f"{tensor.name}: the type cannot be read: got {tensor.type}, want one of "
            f"{', '.join((*_FLOATS, *FORMATS))}."
        )
    rows = stored.reshape(-1, stored.shape[-1] if stored.ndim else 1)
    step = max(1, _PART // max(1, rows.shape[1]))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        values = part if dtype is None else from_storage(part, dtype)
        yield part, values.astype(np.float32, copy=False)


def encode_rows(values: NDArray[np.float32], type_name: str) -> Array:
    """(rows, width) float32 as a GGUF type stores them: of its dtype, or the bytes of blocks."""
    dtype = dtype_named(type_name)
    assert dtype is not None
    if dtype.is_quantized:
        return quantize_rows(np.ascontiguousarray(values), type_name)
    return to_storage(values, dtype)
