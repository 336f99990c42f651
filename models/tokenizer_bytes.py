"""Bytes in GPT-2's printable letters, and text out of bytes as they come."""

import codecs
from typing import Protocol

from yupana.graphlib.errors import DataError


def _printable_bytes() -> list[str]:
    """GPT-2's character for each byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in seen]
    letters = {b: chr(b) for b in seen} | {b: chr(256 + k) for k, b in enumerate(hidden)}
    return [letters[b] for b in range(256)]


LETTERS = _printable_bytes()
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}
_TABLE = dict(enumerate(LETTERS))


def spell(raw: bytes) -> str:
    """Bytes in GPT-2's printable letters, as vocabularies are stored.

    >>> spell(" ñ".encode())
    'ĠÃ±'
    """
    return raw.decode("latin-1").translate(_TABLE)


def unspell(token: str) -> bytes:
    """The bytes a stored token stands for; UTF-8 where it is in clear, as some files hold it.

    >>> unspell("ĠÃ±").decode(), unspell("a b")
    (' ñ', b'a b')
    """
    try:
        return bytes(_BYTES[letter] for letter in token)
    except KeyError:
        return token.encode()


def utf8(text: str) -> bytes:
    """The text as UTF-8.

    Raises:
        DataError: a character is half of a surrogate pair, or `text` is none.
    """
    if not isinstance(text, str):
        raise DataError(f"encode: got {type(text).__name__} {text!r:.60}, want a text.")
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"encode: character {e.start} is half of a surrogate pair: got {text[e.start]!r}, want "
            "valid Unicode. Read the text with errors='replace'."
        ) from None


class Decodable(Protocol):
    """What a stream needs of a vocabulary or tokenizer."""

    def raw(self, token: int) -> bytes:
        """The bytes of a token."""


class StreamDecoder:
    """Turns ids into text as they come; a character cut between tokens waits for its rest.

    >>> from yupana.models.vocabulary import Vocabulary
    >>> stream = Vocabulary.from_bytes().stream()
    >>> [stream.feed(byte) for byte in "añ".encode()], stream.close()
    (['a', '', 'ñ'], '')
    """

    def __init__(self, vocabulary: Decodable) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """What can be shown now that `token` has come."""
        return self._decoder.decode(self._vocabulary.raw(token))

    def close(self) -> str:
        """What is left: U+FFFD where the last character is not whole."""
        return self._decoder.decode(b"", final=True)
