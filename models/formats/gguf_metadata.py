"""The metadata of a GGUF file as a mapping whose values are decoded when asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_cursor import Cursor, shown
from yupana.models.formats.gguf_types import (
    ARRAY,
    BOOL,
    MAX_DEPTH,
    NESTED,
    STRING,
    VALUE_TYPES,
    ValueType,
)

Value: TypeAlias = bool | int | float | str | list[Any] | np.ndarray[Any, Any]


class MissingEntry(FileFormatError, KeyError):
    """A key or tensor that the file does not have."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: ValueType
    count: int | None  # None: one value; else the length of an array
    position: int  # of the value, or of the array's first element
    end: int  # of the value


class Metadata(Mapping[str, Value]):
    """Key to value, in the file's order; nothing but positions is held until a value is read.

    Scalars come as bool, int, float or str; arrays of strings as a list (decoded once), arrays of
    arrays as lists in a list, other arrays as a read-only NumPy array (a view of the file where its
    byte order is ours).

    Args:
        cursor: the file.
        entries: where the values stand.
        instead: values that are given in place of those of the file, or beside them.
    """

    def __init__(
        self, cursor: Cursor, entries: dict[str, _Entry], instead: Mapping[str, Value] | None = None
    ) -> None:
        self._cursor = cursor
        self._entries = entries
        self._instead = dict(instead or {})
        self._texts: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._instead})

    def __len__(self) -> int:
        return len(self._entries.keys() | self._instead.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._entries or key in self._instead

    def __getitem__(self, key: str) -> Value:
        if key in self._instead:
            return self._instead[key]
        entry = self._entry(key)
        cursor = self._cursor.at(entry.position)
        if entry.count is not None:
            if entry.kind is STRING:
                if key not in self._texts:
                    self._texts[key] = _strings(key, cursor, entry)
                return list(self._texts[key])
            array = _array(key, cursor, entry)
            return _plain(array) if entry.kind is NESTED else array
        if entry.kind is STRING:
            return cursor.text(f"value of {shown(key)}")
        value = cursor.number(str(entry.kind.dtype), f"value of {shown(key)}")
        return bool(value) if entry.kind is BOOL else value

    def with_values(self, values: Mapping[str, bool | int | float | str]) -> "Metadata":
        """The same with other values, which the file need not have."""
        return Metadata(self._cursor, self._entries, {**self._instead, **values})

    def type_name(self, key: str) -> str:
        """The type in the file, as "UINT32" or "ARRAY[STRING]"."""
        entry = self._entry(key)
        return entry.kind.name if entry.count is None else f"ARRAY[{entry.kind.name}]"

    def length(self, key: str) -> int:
        """Number of elements of an array, without decoding it; 1 for one value."""
        count = self._entry(key).count
        return 1 if count is None else count

    def position(self, key: str) -> int:
        """Byte at which the value stands in the file."""
        return self._entry(key).position

    def place(self, key: str) -> str:
        """File, key and byte of a value, for errors about it."""
        where = f"{self._cursor.path}: value of {shown(key)}"
        return where if key in self._instead else f"{where} at byte {self.position(key)}"

    def typed(self) -> dict[str, Any]:
        """All values so that `write_gguf` writes each with the type it has here."""
        typed: dict[str, Any] = {}
        for key, entry in self._entries.items():
            value: Any = self[key]
            if entry.kind is NESTED:
                value = _array(key, self._cursor.at(entry.position), entry)
            elif entry.count is None and entry.kind not in (STRING, BOOL):
                value = np.dtype(entry.kind.dtype).type(value)
            typed[key] = value
        return typed

    def _entry(self, key: str) -> _Entry:
        if key not in self._entries:
            raise MissingEntry(
                f"{self._cursor.path}: no metadata {shown(key)}: got {len(self)} other keys, want "
                "it among them. The file may be of another kind than expected."
            )
        return self._entries[key]


def _array(key: str, cursor: Cursor, entry: _Entry) -> Value:
    kind = entry.kind
    if kind is NESTED:
        inner = [_read_array(cursor, f"value of {shown(key)}") for _ in range(entry.count or 0)]
        return [_array(key, cursor.at(one.position), one) for one in inner]
    if kind is STRING:
        return _strings(key, cursor, entry)
    raw: np.ndarray[Any, Any] = np.ndarray(
        (entry.count or 0,), f"{cursor.order}{kind.dtype}", cursor.data, cursor.position
    )
    array = raw != 0 if kind is BOOL else raw.astype(raw.dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def _plain(array: Any) -> Any:
    """Lists in lists, of Python's numbers."""
    if isinstance(array, np.ndarray):
        return array.tolist()
    return [_plain(one) for one in array] if isinstance(array, list) else array


def _strings(key: str, cursor: Cursor, entry: _Entry) -> list[str]:
    unpack, width = cursor.count_struct.unpack_from, cursor.count_struct.size
    data = bytes(cursor.data[entry.position : entry.end])  # bytes decode faster than a view
    texts: list[str] = []
    position = 0
    try:
        for _ in range(entry.count or 0):  # lengths were checked when the file was opened
            start = position + width
            end = start + unpack(data, position)[0]
            texts.append(data[start:end].decode())
            position = end
    except UnicodeDecodeError as e:
        bad = position + width + e.start
        what = f"element {len(texts)} of {shown(key)}"
        got = f"byte {data[bad]:#04x} at {entry.position + bad}"
        raise cursor.error(what, got, "UTF-8 text", entry.position + position) from None
    return texts


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Find `count` key/value pairs from the cursor on.

    Raises:
        FileFormatError: a key comes twice, or a value does not lie in the file.
    """
    entries: dict[str, _Entry] = {}
    for i in range(count):
        start = cursor.position
        key = cursor.text(f"key {i} of {count}")
        if key in entries:
            raise cursor.error(f"key {i}", f"{shown(key)} again", "each key once", start)
        entries[key] = _read_entry(cursor, f"value of {shown(key)}")
    return Metadata(cursor, entries)


def _read_entry(cursor: Cursor, what: str) -> _Entry:
    start = cursor.position
    number = cursor.number("u4", f"type of {what}")
    if number == ARRAY:
        return _read_array(cursor, what)
    kind = _value_type(cursor, number, what, start)
    first = cursor.position
    cursor.skip_value(kind, 1, what)
    return _Entry(kind, None, first, cursor.position)


def _read_array(cursor: Cursor, what: str, depth: int = 1) -> _Entry:
    """Go past an array, from the type of its elements on."""
    start = cursor.position
    number = cursor.number("u4", f"element type of {what}")
    if number == ARRAY:
        if depth == MAX_DEPTH:
            want = f"at most {MAX_DEPTH} arrays in each other"
            raise cursor.error(f"element type of {what}", "an array", want, start)
        count = cursor.count(f"length of {what}", 4 + cursor.count_struct.size)
        first = cursor.position
        for _ in range(count):
            _read_array(cursor, what, depth + 1)
        return _Entry(NESTED, count, first, cursor.position)
    kind = _value_type(cursor, number, what, start)
    count = cursor.count(f"length of {what}", kind.size or cursor.count_struct.size)
    first = cursor.position
    cursor.skip_value(kind, count, what)
    return _Entry(kind, count, first, cursor.position)


def _value_type(cursor: Cursor, number: int, what: str, at: int) -> ValueType:
    if number not in VALUE_TYPES:
        raise cursor.error(f"type of {what}", number, "a type from 0 to 12", at)
    return VALUE_TYPES[number]
