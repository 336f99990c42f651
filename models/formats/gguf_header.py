"""The header of one GGUF file: everything checked, down to where each tensor lies."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_blocks import as_array
from yupana.models.formats.gguf_cursor import Cursor, shown
from yupana.models.formats.gguf_metadata import Metadata, MissingEntry, read_metadata
from yupana.models.formats.gguf_types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_AXES,
    MAX_ENTRIES,
    TENSOR_TYPES,
    TensorType,
    row_bytes,
)
from yupana.models.formats.mapping import FileMemory

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class TensorInfo:
    """One tensor of a file; nothing of it is read before `data` or `raw` is used.

    Attributes:
        name: as in the file.
        shape: in NumPy order, the last axis contiguous (GGUF stores it the other way round).
        type: "F32", "F16", "BF16", "Q8_0", …
        offset: of its first byte, counted from the start of the file.
        nbytes: bytes it takes.
        position: byte of the header at which its record stands, for errors.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    position: int
    _kind: TensorType = field(repr=False)
    _cursor: Cursor = field(repr=False)
    _memory: FileMemory = field(repr=False)
    _field: int = field(repr=False)  # where in the header the offset stands, for errors

    @property
    def path(self) -> Path:
        """The file it is in; of a model in several files one of them."""
        return self._cursor.path

    @property
    def byte_order(self) -> str:
        """Of its numbers: "<" little-endian, ">" big-endian."""
        return self._cursor.order

    @property
    def raw(self) -> Array:
        """(nbytes,) uint8: the bytes in the file; read-only in a map, else read anew each time."""
        self._cursor.at(self.offset)  # an error once the file is closed
        return self._memory.take(self.offset, self.nbytes)

    @property
    def data(self) -> Array:
        """`raw` as numbers, in the file's byte order.

        Returns:
            plain types: `shape`, of the type's dtype (bf16 as the uint16 of its bits);
            quantised types: shape[:-1] + (bytes per row,) uint8.
        """
        return as_array(self.raw, self._kind, self.shape, self.byte_order)


class Tensors(Mapping[str, TensorInfo]):
    """Name to tensor, in the file's order; an unknown name is an error that says so."""

    def __init__(self, path: Path, infos: dict[str, TensorInfo]) -> None:
        self._path = path
        self._infos = infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise MissingEntry(
                f"{self._path}: no tensor {shown(name)}: got {len(self)} others, want it among "
                "them. The file may be of another architecture."
            )
        return self._infos[name]


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What stands in one file; see `GgufFile` for the fields."""

    memory: FileMemory
    cursor: Cursor
    version: int
    metadata: Metadata
    alignment: int
    data_offset: int
    tensors: dict[str, TensorInfo]

    def close(self) -> None:
        """Let go of the file."""
        self.cursor.close()
        self.memory.close()


def read_header(memory: FileMemory) -> Header:
    """Read and check all of a file but its values and its tensors' numbers.

    Raises:
        FileFormatError: the bytes are not a GGUF file; names the field and its offset.
    """
    cursor = _open_header(memory.path, memory.data)
    version: int = cursor.number("u4", "version")
    narrow = version == 1
    n_tensors = cursor.count("number of tensors", 20 if narrow else 24, MAX_ENTRIES)
    n_entries = cursor.count("number of metadata entries", 9 if narrow else 13, MAX_ENTRIES)
    metadata = read_metadata(cursor, n_entries)
    alignment = _alignment(cursor, metadata)
    infos = [_read_tensor(cursor, memory, i, n_tensors) for i in range(n_tensors)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = _place(cursor, infos, data_offset, alignment)
    return Header(memory, cursor, version, metadata, alignment, data_offset, tensors)


def _open_header(path: Path, data: memoryview) -> Cursor:
    """A cursor that stands on the version and knows the byte order and width of counts."""
    magic = bytes(data[:4])
    if magic != MAGIC:
        raise FileFormatError(
            f"{path}: magic at byte 0: got {magic!r}, want {MAGIC!r}. This is not a GGUF file."
        )
    cursor = Cursor(path, data, "<")
    cursor.skip(4, "magic")
    version = cursor.number("u4", "version")
    # The low half of a small number in the other byte order is zero.
    order = ">" if version and version & 0xFFFF == 0 else "<"
    if order == ">":
        version = int.from_bytes(data[4:8], "big")
    if not 1 <= version <= 3:
        raise cursor.error("version", version, "1, 2 or 3", 4, "A newer format cannot be read yet.")
    cursor = Cursor(path, data, order, "I" if version == 1 else "Q")
    cursor.skip(4, "magic")
    return cursor


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value, kind = metadata[key], metadata.type_name(key)
    if kind != "UINT32" or not isinstance(value, int) or value.bit_count() != 1:
        at = metadata.position(key)
        raise cursor.error(f"value of '{key}'", f"{kind} {shown(value)}", "a power of two", at)
    return value


def _read_tensor(cursor: Cursor, memory: FileMemory, index: int, count: int) -> TensorInfo:
    """One tensor's record; `offset` is still counted from the start of the tensor data."""
    start = cursor.position
    name = cursor.text(f"name of tensor {index} of {count}")
    what = f"tensor {shown(name)}"
    at = cursor.position
    n_axes = cursor.number("u4", f"number of axes of {what}")
    if n_axes > MAX_AXES:
        raise cursor.error(f"number of axes of {what}", n_axes, f"at most {MAX_AXES}", at)
    size = cursor.count_struct.size
    at = cursor.position
    axes = [cursor.number(f"u{size}", f"axis {i} of {what}") for i in range(n_axes)]
    shape = tuple(reversed(axes))
    if math.prod(n or 1 for n in axes) >= 2**60:  # so that no count of bytes leaves 63 bits
        raise cursor.error(f"axes of {what}", axes, "fewer than 2^60 elements", at)
    at = cursor.position
    number = cursor.number("u4", f"type of {what}")
    if number not in TENSOR_TYPES:
        known = ", ".join(f"{t.number} {t.name}" for t in TENSOR_TYPES.values())
        raise cursor.error(f"type of {what}", number, f"one of {known}", at)
    kind = TENSOR_TYPES[number]
    width = row_bytes(kind, shape)
    if width is None:
        want = f"a last axis in whole blocks of {kind.block}"
        raise cursor.error(f"shape of {what} ({kind.name})", shape, want, start)
    at = cursor.position
    offset = cursor.number("u8", f"offset of {what}")
    nbytes = width * math.prod(shape[:-1])
    return TensorInfo(name, shape, kind.name, offset, nbytes, start, kind, cursor, memory, at)


def _place(
    cursor: Cursor, infos: list[TensorInfo], data_offset: int, alignment: int
) -> dict[str, TensorInfo]:
    """Check where tensors lie, and count their offsets from the start of the file."""
    placed: dict[str, TensorInfo] = {}
    size = len(cursor.data)
    for info in infos:
        at = info._field
        what = f"offset of tensor {shown(info.name)}"
        if info.name in placed:
            raise cursor.error("tensor before", f"{shown(info.name)} again", "names once", at)
        if info.offset % alignment:
            raise cursor.error(what, info.offset, f"a multiple of {alignment}", at)
        info = replace(info, offset=data_offset + info.offset)
        if info.offset + info.nbytes > size:
            got = f"{info.nbytes} bytes at {info.offset}"
            raise cursor.error(what, got, f"data inside the file of {size} bytes", at)
        placed[info.name] = info
    in_order = sorted((i for i in placed.values() if i.nbytes), key=lambda info: info.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.nbytes > after.offset:
            got = f"{after.offset}, inside {shown(before.name)} from {before.offset}"
            want = f"{before.offset + before.nbytes} or more"
            raise cursor.error(f"offset of tensor {shown(after.name)}", got, want, after._field)
    return placed
