"""A reading position in bytes that may lie: nothing is read before it is known to be there."""

import copy
import struct
from pathlib import Path
from typing import Any

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_types import ValueType
from yupana.models.formats.mapping import check_size

_REMEDY = "The file is damaged or cut short; fetch or write it again."
_LETTERS = {"u1": "B", "i1": "b", "u2": "H", "i2": "h", "u4": "I", "i4": "i"}
_LETTERS |= {"u8": "Q", "i8": "q", "f4": "f", "f8": "d"}


def shown(text: object, limit: int = 60) -> str:
    """Quote a value taken from a file for a message, cut to a readable length."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 4] + "…" + quoted[-1]


class Cursor:
    """Reads numbers and strings of one byte order one after the other.

    All that reads raises FileFormatError, with the field and its byte, where the file is damaged,
    cut off or closed.

    Args:
        path: named in errors.
        data: (size,) uint8, the whole file.
        order: "<" little-endian or ">" big-endian.
        count_type: "I" where counts and lengths have 32 bits (version 1), else "Q".
    """

    def __init__(self, path: Path, data: memoryview, order: str, count_type: str = "Q") -> None:
        self.path = path
        self.data = data
        self.order = order
        self.position = 0
        self.count_struct = struct.Struct(order + count_type)
        self._structs = {dtype: struct.Struct(order + c) for dtype, c in _LETTERS.items()}
        self.closed = False

    def at(self, position: int) -> "Cursor":
        """Another cursor over the same bytes, so that readers do not move each other."""
        if self.closed:
            raise FileFormatError(
                f"{self.path}: the file is closed: got a request for byte {position}, want it "
                "while the file is open. Read what you need before close()."
            )
        check_size(self.path, self.data)
        other = copy.copy(self)
        other.position = position
        return other

    def close(self) -> None:
        """Let go of the bytes."""
        self.closed = True
        self.data = memoryview(b"")

    @property
    def left(self) -> int:
        """Bytes that follow."""
        return len(self.data) - self.position

    def error(
        self, what: str, got: object, want: str, at: int | None = None, remedy: str = _REMEDY
    ) -> FileFormatError:
        """The error for a field that starts at byte `at` (default: the present position)."""
        where = self.position if at is None else at
        return FileFormatError(
            f"{self.path}: {what} at byte {where}: got {got}, want {want}. {remedy}"
        )

    def number(self, dtype: str, what: str) -> Any:
        """One scalar of `dtype` ("u4", "f8", …)."""
        return self._unpack(self._structs[dtype], what)

    def count(self, what: str, item_bytes: int, most: int | None = None) -> int:
        """A count of items that take `item_bytes` or more each, so that it bounds all loops."""
        start = self.position
        value: int = self._unpack(self.count_struct, what)
        if most is not None and value > most:
            raise self.error(what, value, f"at most {most}", start)
        if value * item_bytes > self.left:
            want = f"at most {self.left // item_bytes}, as {self.left} bytes follow"
            raise self.error(what, value, want, start)
        return value

    def text(self, what: str) -> str:
        """A string: its length in bytes, then UTF-8."""
        start = self.position
        size = self.count(f"length of {what}", 1)
        raw = self.data[self.position : self.position + size]
        self.position += size
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as e:
            got = f"byte {raw[e.start]:#04x} at {start + self.count_struct.size + e.start}"
            raise self.error(what, got, "UTF-8 text", start) from None

    def skip(self, size: int, what: str) -> None:
        """Go past so many bytes."""
        if size > self.left:
            raise self.error(what, f"{size} bytes", f"at most the {self.left} that follow")
        self.position += size

    def skip_value(self, kind: ValueType, count: int, what: str) -> None:
        """Go past `count` values without decoding them."""
        if kind.dtype is not None:
            return self.skip(kind.size * count, what)
        # A vocabulary has 10^5 strings, so this loop is most of the time to open a file: bounds
        # are left to `unpack_from`, which refuses to read outside the buffer.
        unpack, width, data = self.count_struct.unpack_from, self.count_struct.size, self.data
        start = before = position = self.position
        try:
            for _ in range(count):
                after = position + width + unpack(data, position)[0]
                before, position = position, after
        except (struct.error, OverflowError):
            if position <= len(data):  # else the length before led out of the file
                before = position
            position = len(data) + 1
        if position > len(data):
            raise self.error(
                f"a string of {what} (which starts at {start})",
                "a length that leads out of the file",
                f"at most {max(len(data) - before - width, 0)} bytes",
                before,
            )
        self.position = position
        return None

    def _unpack(self, layout: struct.Struct, what: str) -> Any:
        if layout.size > self.left:
            raise self.error(what, f"the end of the file after {self.left} bytes", "a number")
        (value,) = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return value
