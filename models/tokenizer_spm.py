"""SentencePiece's BPE ("llama" in GGUF): pieces are joined by score, unknown characters are bytes.

A space is U+2581 in the stored tokens. Two neighbours may be joined where the two together are a
token; the one of highest score comes first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from yupana.graphlib.errors import DataError
from yupana.models.tokenizer_base import Tokenizer, TokenType
from yupana.models.tokenizer_merge import merge

_SPACE = "\u2581"
_CACHE, _LONGEST = 1 << 16, 48  # words that are kept, and characters of the longest that is


class SpmTokenizer(Tokenizer):
    r"""A tokenizer of the LLaMA 1 and 2 family.

    Args:
        tokens, types, special: as `Tokenizer`.
        scores: of each token; the highest is joined first.
        settings: as `Tokenizer`.

    >>> tokens = [*"abc", "ab", "bc", "\u2581", "<0x0A>"]
    >>> types = [1, 1, 1, 1, 1, 1, 6]
    >>> tokenizer = SpmTokenizer(tokens, types, {}, scores=[0, 0, 0, -2, -1, 0, 0])
    >>> tokenizer.encode("abc ab\n")
    [0, 4, 5, 3, 6]
    """

    def __init__(
        self,
        tokens: Sequence[str],
        types: Sequence[int],
        special: Mapping[str, int],
        *,
        scores: Iterable[float],
        **settings: Any,
    ) -> None:
        super().__init__(tokens, types, special, **settings)
        self._order = {token: -s for token, s in zip(self.tokens, scores, strict=True)}
        self._kept = lru_cache(_CACHE)(self._word)

    def _encode_text(self, text: str, after_special: bool) -> Iterable[int]:
        if self.add_space_prefix and after_special:
            text = " " + text
        ids: list[int] = []
        for word in self._words(text.replace(" ", _SPACE)):
            ids += (self._kept if len(word) <= _LONGEST else self._word)(word)
        return ids

    @cached_property
    def _pairs(self) -> set[str]:
        """All neighbours inside tokens."""
        return {token[k : k + 2] for token in self.tokens for k in range(len(token) - 1)}

    def _words(self, text: str) -> Iterator[str]:
        """The text cut where no token holds both neighbours: nothing is joined across."""
        pairs, start = self._pairs, 0
        for k in range(1, len(text)):
            if text[k - 1 : k + 1] not in pairs:
                yield text[start:k]
                start = k
        yield text[start:]

    def _word(self, word: str) -> tuple[int, ...]:
        pieces = merge(word, self._order)
        return tuple(k for piece in pieces for k in self._piece_ids(piece))

    def _piece_ids(self, piece: str) -> Iterator[int]:
        if piece in self._ids:
            yield self._ids[piece]
            return
        for byte in piece.encode():
            token = self._ids.get(f"<0x{byte:02X}>")
            if token is None:
                raise DataError(
                    f"encode: a byte of the text is no token: got {byte:#04x} of {piece!r}, want "
                    f"a token <0x{byte:02X}>. The vocabulary lacks some of the 256 bytes."
                )
            yield token

    def _piece(self, token: str, kind: int) -> bytes:
        if kind == TokenType.BYTE:
            return bytes([int(token[3:5], 16)])
        if kind == TokenType.USER_DEFINED:
            return token.encode()
        return token.replace(_SPACE, " ").encode() if kind == TokenType.NORMAL else b""
