"""JSON of any size as training data: an object in each line, or a file that is one array."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from yupana.graphlib.errors import DataError, YupanaError
from yupana.train.forms import FORMS
from yupana.train.text import not_utf8, open_data, read_blocks

_LONGEST = 1 << 26  # characters of one entry of an array
_SPACE = re.compile(r"[ \t\r\n]*")
_T = TypeVar("_T")


def read_json(path: str | PathLike[str], make: Callable[[Any], _T]) -> Iterator[_T]:
    """What `make` makes of each entry; its errors get the file and where in it.

    A file whose name ends in .json may be one array; all others have an entry in each line.

    Raises:
        DataError: the file cannot be read, or an entry cannot be used.
    """
    path, is_empty = Path(path), True
    is_array = _is_array(path)
    for where, value in _of_array(path) if is_array else _of_lines(path):
        is_empty = False
        try:
            yield make(value if is_array else _parsed(value))
        except YupanaError as e:
            raise DataError(f"train data: {path}: {where}: {e}") from None
    if is_empty:
        raise DataError(f"train data: {path}: got an empty file, want lines of JSON: {FORMS}.")


def _of_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and where it is."""
    with open_data(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as e:
                at = file.tell() - len(raw) + e.start
                raise not_utf8(path, e, at, number) from None
            if text:
                yield f"line {number}", text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        where = f" at column {e.colno}" if isinstance(e, json.JSONDecodeError) else ""
        raise DataError(
            f"not JSON{where}: got {text[:40]!r}, want one object in one line: {FORMS}."
        ) from None


def _is_array(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    with open_data(path) as file:
        return file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _of_array(path: Path) -> Iterator[tuple[str, Any]]:
    """Each entry of an array, read piece by piece, and where it is."""
    text, number = _Pieces(path), 0
    text.take("[")
    while text.next() != "]":
        if number:
            text.take(",")
        number += 1
        yield f"entry {number}", text.value()
    text.take("]")
    if text.next():
        raise text.error("nothing behind the array")


class _Pieces:
    """The text of a file, of which only what is being read is in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._blocks = path, read_blocks(path)
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Go on behind a character.

        Raises:
            DataError: another comes next.
        """
        if self.next() != character:
            raise self.error(f"{character!r} in an array of objects: {FORMS}")
        self._at += 1

    def value(self) -> Any:
        """Read a value of JSON, and go on behind it.

        Raises:
            DataError: there is none.
        """
        self.next()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
                return value
            except (ValueError, RecursionError):  # it may go on in the next block
                if len(self._text) - self._at > _LONGEST or not self._more():
                    raise self.error(f"an array of objects: {FORMS}") from None

    def error(self, want: str) -> DataError:
        """What to raise where the text is no array."""
        got = self._text[self._at : self._at + 40]
        return DataError(f"train data: {self._path}: not JSON: got {got!r}, want {want}.")

    def _more(self) -> bool:
        block = next(self._blocks, "")
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)
