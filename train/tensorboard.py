"""Curves for TensorBoard: its event files, written without it.

A file is a row of records: length, checksum of the length, an Event in protocol buffers' coding,
checksum of that. Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto
and tensorflow/core/framework/summary.proto.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # kinds of fields
_START = 1  # of a SessionLog: what stands before of this step and later ones counts no more


class EventFile:
    """A new event file in a folder, made when the first values are written.

    TensorBoard shows all files of a folder as one run. From the first step that this one has, it
    forgets what the others say: steps made again after a resume take the place of the old ones.

    Args:
        folder: made with the file.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> EventFile(folder).write(1, {"loss": 2.5})
    >>> [path.name[:19] for path in folder.iterdir()]
    ['events.out.tfevents']
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self._folder = Path(folder)
        self._path: Path | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step, by the names of their curves.

        Raises:
            OSError: the system cannot write.
        """
        records = [_event(step, 5, b"".join(_bytes(1, _value(n, v)) for n, v in values.items()))]
        if self._path is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path = self._new_path()
            start = _event(step, 7, _key(1, _VARINT) + _varint(_START))
            records = [_event(0, 3, b"brain.Event:2"), start, *records]
        with self._path.open("ab") as file:
            file.write(b"".join(map(_framed, records)))

    def _new_path(self) -> Path:
        """Names sort by time; nothing else may have the same."""
        parts = f"{time.time_ns() // 1000:016}", socket.gethostname(), str(os.getpid())
        return self._folder / f"events.out.tfevents.{'.'.join(parts)}"


def masked_checksum(data: bytes) -> int:
    """CRC-32C, turned and shifted, as records have it.

    >>> hex(masked_checksum(b"123456789"))
    '0xc78ab0e5'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = [*map(_row, range(256))]


def _framed(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    checksums = (struct.pack("<I", masked_checksum(part)) for part in (length, event))
    return length + next(checksums) + event + next(checksums)


def _event(step: int, field: int, content: bytes) -> bytes:
    """An Event of now, with one of its kinds of content."""
    now = _key(1, _DOUBLE) + struct.pack("<d", time.time())
    return now + _key(2, _VARINT) + _varint(step) + _bytes(field, content)


def _value(name: str, value: float) -> bytes:
    return _bytes(1, name.encode()) + _key(2, _FLOAT) + struct.pack("<f", value)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
