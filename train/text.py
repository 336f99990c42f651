"""Text to learn from: read piece by piece, and cut into samples by finetune's rules."""

import codecs
import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from yupana.graphlib.errors import DataError

PIECE = 1 << 20  # characters tokenised at a time; how they are cut does not depend on the file
_BLOCK = 1 << 20  # bytes read at a time
_NEAR = 1 << 13  # characters among which a good place to cut is looked for
# Places where no tokenizer joins what lies on both sides, the better one first: behind the end of a
# line, in front of a space between words.
_CUTS = re.compile(r"(?<=[!-~]\n)(?=[!-~])"), re.compile(r"(?<=[!-~])(?= [!-~])")


def open_data(path: str | PathLike[str]) -> BinaryIO:
    """A file of training data, opened to read bytes.

    Raises:
        DataError: it is missing, is no file, or cannot be read; says what to do.
    """
    path = Path(path)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise DataError(
            f"train data: {path}: no such file: got a path to nothing, want a text file. Paths are "
            f"counted from {Path.cwd()}."
        ) from None
    except OSError as e:
        raise _unreadable(path, e) from None


def read_blocks(path: str | PathLike[str]) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, line ends as they are.

    Raises:
        DataError: the file is missing, cannot be read, is empty, or is not UTF-8; says what to do.
    """
    path = Path(path)
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes, n_lines, is_first = 0, 1, True
    with open_data(path) as file:
        while True:
            try:
                block = file.read(_BLOCK)
            except OSError as e:
                raise _unreadable(path, e) from None
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                at = n_bytes - waiting + e.start
                raise not_utf8(path, e, at, n_lines + e.object.count(b"\n", 0, e.start)) from None
            if text and is_first:
                text, is_first = text.removeprefix("\ufeff"), False  # it is no part of the text
            n_bytes += len(block)
            n_lines += block.count(b"\n")
            if text:
                yield text
            if not block:
                break
    if not n_bytes:
        raise DataError(f"train data: {path}: got an empty file, want text in UTF-8.")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"train data: {path}: cannot be read: got {error.strerror}, want a readable text file."
    )


def not_utf8(path: Path, error: UnicodeDecodeError, at: int, line: int) -> DataError:
    """The error for bytes that are no text, found at byte `at` of a file."""
    return DataError(
        f"train data: {path}: not UTF-8: got byte {error.object[error.start]:#04x} at byte {at} "
        f"(line {line}), want text in UTF-8. Convert it, as with "
        f"`iconv -f latin1 -t utf-8 {path.name}`, or name a text file."
    )


def in_pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    r"""The same text cut anew into pieces that can be tokenised one by one.

    A cut is made where tokenizers cut themselves, if possible at the end of a line, so that the
    ids are those of the whole text; but for a vocabulary that puts a space before each text
    (SentencePiece's), which has one more token for each piece. Without such a place in `size`
    characters, the cut is made there.

    >>> [*in_pieces(["ab\ncd", "e\nf"], size=4)]
    ['ab\n', 'cde\n', 'f']
    """
    buffer = ""
    for block in blocks:
        buffer += block
        while len(buffer) > size:
            cut = _last_cut(buffer, size)
            yield buffer[:cut]
            buffer = buffer[cut:]
    if buffer:
        yield buffer


def _last_cut(text: str, size: int) -> int:
    """The best place to cut a text, from 1 to `size`."""
    start = max(0, size - _NEAR)
    for pattern in _CUTS:
        places = [match.start() for match in pattern.finditer(text, start, size + 2)]
        if found := [place for place in places if 0 < place <= size]:
            return found[-1]
    return size


def split_samples(
    blocks: Iterable[str], delimiter: str, include: bool = False
) -> Iterator[tuple[str, bool]]:
    """Cut a text at a delimiter: each sample goes from one to the next.

    What stands before the first is left out.

    Args:
        blocks: the text in pieces of any sizes.
        delimiter: not empty.
        include: samples begin with their delimiter.
    Returns:
        (text, whether a sample ends with it): long samples come in several parts.
    Raises:
        DataError: the text has no such delimiter.

    >>> [*split_samples(["#a", "b#", "c"], "#")]
    [('ab', True), ('c', True)]
    """
    head = delimiter if include else ""
    keep = len(delimiter) - 1  # the end of a block may be the beginning of a delimiter
    buffer, is_inside = "", False
    for block in blocks:
        buffer += block
        *parts, buffer = buffer.split(delimiter)
        for part in parts:
            if is_inside:
                yield part, True
            is_inside = True
            if head:
                yield head, False
        known = len(buffer) - keep
        if known > (PIECE if is_inside else 0):
            if is_inside:
                yield buffer[:known], False
            buffer = buffer[known:]
    if not is_inside:
        raise _no_delimiter(delimiter)
    yield buffer, True


def overlapping_samples(
    blocks: Iterable[str], delimiter: str, n_bytes: int, include: bool = False
) -> Iterator[tuple[str, bool]]:
    """As `split_samples`, but each sample goes on for `n_bytes`, over delimiters if need be.

    An end within a character moves behind it.

    >>> [*overlapping_samples(["#a", "b#", "c"], "#", 3)]
    [('ab#', True), ('c', True)]
    """
    skip = 0 if include else len(delimiter)
    reach = skip + n_bytes  # characters that suffice: each has a byte at least
    source = iter(blocks)
    buffer, is_found, is_end = "", False, False
    while not is_end:
        block = next(source, None)
        is_end = block is None
        buffer += block or ""
        done = max(0, len(buffer) - len(delimiter) + 1)
        at = 0
        while (found := buffer.find(delimiter, at)) >= 0:
            if len(buffer) < found + reach and not is_end:
                done = found  # its text has yet to come
                break
            is_found = True
            yield _cut_at_byte(buffer[found + skip : found + reach], n_bytes), True
            at = found + len(delimiter)
        buffer = buffer[max(at, done) :]
    if not is_found:
        raise _no_delimiter(delimiter)


def _no_delimiter(delimiter: str) -> DataError:
    return DataError(
        f"train data: sample_start: got {delimiter!r}, want text that the data have. Leave it out "
        "to let a sample start at every token, or set escape for \\n and the like."
    )


def _cut_at_byte(text: str, n_bytes: int) -> str:
    raw = text.encode()
    while n_bytes < len(raw) and raw[n_bytes] & 0xC0 == 0x80:
        n_bytes += 1
    return raw[:n_bytes].decode()
