"""Byte-level BPE ("gpt2" in GGUF): text is split, and bytes in printable letters are joined."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from yupana.models.tokenizer_base import Tokenizer, TokenType
from yupana.models.tokenizer_bytes import spell, unspell
from yupana.models.tokenizer_merge import merge
from yupana.models.tokenizer_split import Splitter

_CACHE, _LONGEST = 1 << 16, 48  # words that are kept, and characters of the longest that is


class BpeTokenizer(Tokenizer):
    """A tokenizer of the GPT-2 family.

    Args:
        tokens, types, special: as `Tokenizer`.
        merges: pairs of stored tokens as "left right", the first to be joined first.
        splitter: cuts the text before anything is joined.
        settings: as `Tokenizer`.

    >>> from yupana.models.tokenizer_split import splitter
    >>> merges, split = ["a b", "Ġ ab"], splitter("gpt-2")
    >>> tokens = [*"abĠ", "ab", "Ġab"]
    >>> BpeTokenizer(tokens, [1] * 5, {}, merges=merges, splitter=split).encode("abba ab")
    [3, 1, 0, 4]
    """

    def __init__(
        self,
        tokens: Sequence[str],
        types: Sequence[int],
        special: Mapping[str, int],
        *,
        merges: Sequence[str],
        splitter: Splitter,
        **settings: Any,
    ) -> None:
        super().__init__(tokens, types, special, **settings)
        self.splitter = splitter
        # Of equal merges the first counts. A spelled word has no space, so the pair is plain.
        self._ranks = {merges[k]: k for k in range(len(merges) - 1, -1, -1)}
        self._kept = lru_cache(_CACHE)(self._word)

    def _encode_text(self, text: str, after_special: bool) -> Iterable[int]:
        ids: list[int] = []
        for word in self.splitter.split(text):
            ids += (self._kept if len(word) <= _LONGEST else self._word)(word)
        return ids

    def _word(self, word: str) -> tuple[int, ...]:
        letters = spell(word.encode())
        if self.splitter.whole_words and letters in self._ids:
            return (self._ids[letters],)
        pieces = merge(letters, self._ranks, " ")
        return tuple(k for piece in pieces for k in self._piece_ids(piece))

    def _piece_ids(self, piece: str) -> list[int]:
        """The token of a piece; else what llama.cpp gives: its ASCII letters, the rest is lost."""
        if piece in self._ids:
            return [self._ids[piece]]
        return [self._ids[c] for c in piece if c.isascii() and c in self._ids]

    def _piece(self, token: str, kind: int) -> bytes:
        if kind == TokenType.USER_DEFINED:
            return token.encode()
        return unspell(token) if kind == TokenType.NORMAL else b""
