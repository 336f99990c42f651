"""One metadata entry as GGUF bytes: which type a Python value gets, and how it is packed."""

import math
import struct
from typing import Any

import numpy as np

from yupana.graphlib.errors import DtypeError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_types import (
    ARRAY,
    BOOL,
    STRING,
    VALUE_TYPES,
    ValueType,
)

_BY_DTYPE = {np.dtype(t.dtype): t for t in VALUE_TYPES.values() if t.dtype and t is not BOOL}
_BY_DTYPE[np.dtype(bool)] = BOOL


def encode_text(text: str) -> bytes:
    """Length in bytes, then UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encode_entry(key: str, value: Any) -> bytes:
    """Key, type and value.

    Raises:
        DtypeError: a value that no GGUF type holds.
    """
    try:
        if not 0 < len(key.encode()) < 1 << 16:
            raise _error(key, f"{len(key.encode())} bytes of key", "1 to 65535")
        if isinstance(value, str):
            return encode_text(key) + struct.pack("<I", STRING.number) + encode_text(value)
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
            return encode_text(key) + _encode_array(key, value)
    except UnicodeEncodeError as e:
        raise _error(key, f"the lone surrogate {e.object[e.start]!r}", "valid Unicode") from None
    kind, array = _numbers(key, [value])
    return encode_text(key) + struct.pack("<I", kind.number) + array.tobytes()


def _encode_array(key: str, values: Any) -> bytes:
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise _error(key, f"an array of {values.ndim} axes", "one axis")
        if values.dtype.kind in "UOT":
            values = values.tolist()
    if len(values) and all(isinstance(v, list | tuple | np.ndarray) for v in values):
        parts = [_encode_array(key, v)[4:] for v in values]  # each without saying that it is one
        return struct.pack("<IIQ", ARRAY, ARRAY, len(values)) + b"".join(parts)
    if all(isinstance(v, str) for v in values):  # an empty list, too
        head = struct.pack("<IIQ", ARRAY, STRING.number, len(values))
        return head + b"".join(map(encode_text, values))
    kind, array = _numbers(key, values)
    return struct.pack("<IIQ", ARRAY, kind.number, len(array)) + array.tobytes()


def _numbers(key: str, values: Any) -> tuple[ValueType, np.ndarray[Any, Any]]:
    """The type that holds all `values`, and they as little-endian numbers of it."""
    if not isinstance(values, np.ndarray):
        values = _plain_numbers(key, values)
    kind = _BY_DTYPE.get(values.dtype.newbyteorder("="))
    if kind is None:
        raise _error(key, f"values of {values.dtype}", "bool, 8 to 64 bit integers, f32 or f64")
    return kind, values.astype("<" + str(kind.dtype))


def _plain_numbers(key: str, values: Any) -> np.ndarray[Any, Any]:
    """Python numbers, or scalars of NumPy of one type, as an array of the type GGUF gets."""
    types = {type(v) for v in values}
    if all(issubclass(t, np.generic) for t in types) and len(types) == 1:
        return np.array(values)
    if types == {bool}:
        return np.array(values, bool)
    if types == {int}:
        low, high = min(values), max(values)
        for dtype in (np.uint32, np.int64, np.uint64):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return np.array(values, dtype)
        raise _error(key, f"integers from {low} to {high}", "64 bits")
    if types <= {int, float}:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(np.float32)
        for value, stored in zip(values, array.tolist(), strict=True):
            if math.isinf(stored) and not math.isinf(value):
                raise _error(key, value, "the range of float32, or np.float64(value)")
        return array
    names = ", ".join(sorted(t.__name__ for t in types))
    raise _error(key, f"{names} {shown(values)}", "bool, int, float, str or a list of one of them")


def _error(key: str, got: object, want: str) -> DtypeError:
    return DtypeError(f"write_gguf: metadata {shown(key)}: got {got}, want {want}.")
