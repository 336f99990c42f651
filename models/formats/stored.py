"""What readers of the formats before GGUF share: a tensor in a mapped file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from yupana.models.formats.gguf_blocks import as_array
from yupana.models.formats.gguf_cursor import Cursor, shown
from yupana.models.formats.gguf_types import (
    MAX_AXES,
    TENSOR_TYPE_BY_NAME,
    TENSOR_TYPES,
    TensorType,
    row_bytes,
)

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of a file; nothing of it is read before `load` is called.

    Attributes:
        name: as in the file, or as in the file it will be written to.
        shape: in NumPy order, the last axis contiguous.
        type: GGUF's name of its type where there is one ("F16", "Q8_0", …).
        nbytes: bytes it takes in the file.
        load: gives its data as `TensorInfo.data` does (bf16 as uint16, blocks as bytes); of
            types that GGUF does not know, the numbers in float32.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    load: Callable[[], Array]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def tensor_at(
    data: memoryview,
    name: str,
    shape: tuple[int, ...],
    type_name: str,
    offset: int,
) -> StoredTensor:
    """The tensor whose bytes start at `offset`; they need not be aligned."""
    kind = TENSOR_TYPE_BY_NAME[type_name]
    nbytes = tensor_bytes(kind, shape)
    assert nbytes is not None
    assert 0 <= offset <= offset + nbytes <= len(data)

    def load() -> Array:
        raw: Array = np.ndarray((nbytes,), "u1", data, offset)
        return as_array(raw, kind, shape, "<")

    return StoredTensor(name, shape, type_name, nbytes, load)


def tensor_bytes(kind: TensorType, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, or None where its rows are not whole blocks."""
    width = row_bytes(kind, shape)
    return None if width is None else width * math.prod(shape[:-1])


def read_record(cursor: Cursor, index: int, alignment: int) -> StoredTensor:
    """The next tensor of the formats before GGUF, whose data follow their own header.

    A record is: number of axes, bytes of the name, number of the type, axes from the fastest,
    name, data (from the next multiple of `alignment`); all numbers have 32 bits.

    Raises:
        FileFormatError: a field that is none, or data that lead out of the file.
    """
    start = cursor.position
    what = f"tensor {index}"
    n_axes, n_name, number = (
        cursor.number("u4", f"{field} of {what}")
        for field in ("number of axes", "length of the name", "type")
    )
    if not 1 <= n_axes <= MAX_AXES:
        raise cursor.error(f"number of axes of {what}", n_axes, f"1 to {MAX_AXES}", start)
    axes = [cursor.number("u4", f"axis {k} of {what}") for k in range(n_axes)]
    if not all(axes):
        raise cursor.error(f"axes of {what}", axes, "at least 1 each", start + 12)
    at = cursor.position
    cursor.skip(n_name, f"name of {what}")
    raw = bytes(cursor.data[at : at + n_name])
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise cursor.error(f"name of {what}", shown(raw), "UTF-8 text", at) from None
    what = f"tensor {shown(name)}"
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        known = ", ".join(f"{t.number} {t.name}" for t in TENSOR_TYPES.values())
        raise cursor.error(f"type of {what}", number, f"one of {known}", start + 8)
    shape = tuple(reversed(axes))
    nbytes = tensor_bytes(kind, shape)
    if nbytes is None:
        want = f"a last axis in whole blocks of {kind.block}"
        raise cursor.error(f"axes of {what} ({kind.name})", axes, want, start + 12)
    cursor.skip(-cursor.position % alignment, f"padding before {what}")
    offset = cursor.position
    cursor.skip(nbytes, f"data of {what}")
    return tensor_at(cursor.data, name, shape, kind.name, offset)


def read_records(
    cursor: Cursor,
    alignment: int = 1,
    check: Callable[[Cursor, StoredTensor, int], None] | None = None,
) -> dict[str, StoredTensor]:
    """All tensors up to the end of the file, by name.

    Args:
        check: called with each and the byte where its record starts; raises if it is not right.
    Raises:
        FileFormatError: as `read_record`, or a name comes twice.
    """
    tensors: dict[str, StoredTensor] = {}
    while cursor.left:
        at = cursor.position
        tensor = read_record(cursor, len(tensors), alignment)
        if tensor.name in tensors:
            raise cursor.error(
                f"tensor {len(tensors)}", f"{shown(tensor.name)} again", "each name once", at
            )
        if check is not None:
            check(cursor, tensor, at)
        tensors[tensor.name] = tensor
    return tensors
