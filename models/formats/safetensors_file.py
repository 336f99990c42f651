"""Safetensors: 8 bytes of length, a JSON header, then the tensors' bytes; read in place.

The `safetensors` package is not used for reading: it copies each tensor, and gives NumPy no bf16.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_cursor import Cursor, shown
from yupana.models.formats.gguf_types import MAX_AXES, TENSOR_TYPE_BY_NAME
from yupana.models.formats.mapping import map_file
from yupana.models.formats.stored import StoredTensor, tensor_at

# Their names of the types that GGUF has as well.
_TYPES = {name: name for name in ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64")}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the `safetensors` package


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsFile:
    """What a file holds.

    Attributes:
        metadata: texts by key ("__metadata__" of the header).
        tensors: name to tensor.
    """

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def read_safetensors(path: str | PathLike[str]) -> SafetensorsFile:
    """Open a file; tensors stay in the map.

    Raises:
        FileFormatError: the bytes are no such file, or tensors overlap, lie outside it or are of
            a type that cannot be read; names the field.
        OSError: the system cannot open it.
    """
    path = Path(path)
    cursor = Cursor(path, map_file(path, "a safetensors file"), "<")
    header = _read_header(cursor)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _wrong(path, "'__metadata__'", shown(metadata), "texts by key")
    first = cursor.position
    placed = sorted(
        (_place(cursor, name, entry, first) for name, entry in header.items()),
        key=lambda place: place[0],
    )
    for (_, end, before), (start, _, after) in pairwise(placed):
        if start < end:
            raise _wrong(
                path,
                f"offset of {shown(after.name)}",
                start - first,
                f"{end - first} or more, behind {shown(before.name)}",
            )
    by_name = {tensor.name: tensor for _, _, tensor in placed}
    return SafetensorsFile(path, metadata, {name: by_name[name] for name in header})


def _read_header(cursor: Cursor) -> dict[str, Any]:
    size = cursor.number("u8", "length of the header")
    if not 2 <= size <= min(cursor.left, _MAX_HEADER_BYTES):
        want = f"2 to {min(cursor.left, _MAX_HEADER_BYTES)} bytes"
        raise cursor.error("length of the header", size, want, 0)
    raw = bytes(cursor.data[cursor.position : cursor.position + size])
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise cursor.error("header", f"an error ({e})", "JSON") from None
    if not isinstance(header, dict):
        raise cursor.error("header", type(header).__name__, "a JSON object")
    cursor.position += size
    return header


def _place(cursor: Cursor, name: str, entry: Any, first: int) -> tuple[int, int, StoredTensor]:
    """Start, end and view of the tensor that an entry of the header describes."""
    what = f"tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise _wrong(cursor.path, what, shown(entry), "a JSON object")
    kind = TENSOR_TYPE_BY_NAME.get(_TYPES.get(str(entry.get("dtype")), ""))
    if kind is None:
        raise _wrong(
            cursor.path,
            f"dtype of {what}",
            shown(entry.get("dtype")),
            f"one of {', '.join(_TYPES)}",
        )
    shape: Any = entry.get("shape")
    if not _are_counts(shape) or len(shape) > MAX_AXES or not all(shape):
        raise _wrong(
            cursor.path, f"shape of {what}", shown(shape), f"at most {MAX_AXES} axes of at least 1"
        )
    offsets: Any = entry.get("data_offsets")
    nbytes = kind.size * math.prod(shape)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise _wrong(
            cursor.path,
            f"data_offsets of {what}",
            shown(offsets),
            f"two with {nbytes} bytes between them",
        )
    start, end = first + offsets[0], first + offsets[1]
    if end > len(cursor.data):
        raise _wrong(
            cursor.path,
            f"data_offsets of {what}",
            shown(offsets),
            f"at most {len(cursor.data) - first}, where the file ends",
        )
    return start, end, tensor_at(cursor.data, name, tuple(shape), kind.name, start)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _wrong(path: Path, what: str, got: object, want: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: {what}: got {got}, want {want}. The file is damaged or cut short; fetch or "
        "write it again."
    )
