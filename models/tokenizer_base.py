"""What all tokenizers share: special tokens cut out of the text, BOS and EOS, and decoding."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.tokenizer_bytes import StreamDecoder, utf8


class TokenType(IntEnum):
    """What a token is for, with the numbers of GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4  # in text it is one token always, before any merging
    UNUSED = 5
    BYTE = 6


_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)
_SPECIAL = (*_HIDDEN, TokenType.USER_DEFINED)


class Tokenizer(ABC):
    """Text to token ids and back, as llama.cpp does it; `load_tokenizer` makes one from a file.

    Attributes:
        tokens: each token as stored.
        types: TokenType of each.
        special: name to id of those the file has: "bos", "eos", "unknown", "padding", "eot", …
        ends: ids at which generation stops.
        add_bos, add_eos: what `encode` puts around a text.
        add_space_prefix: a space goes before the text, and before what follows a special token.
        strips: special tokens that swallow the white space after them.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        types: Sequence[int],
        special: Mapping[str, int],
        *,
        ends: Iterable[int] = (),
        add_bos: bool = False,
        add_eos: bool = False,
        add_space_prefix: bool = False,
        strips: Iterable[int] = (),
    ) -> None:
        self.tokens = list(tokens)
        self.types = list(types)
        self.special = dict(special)
        self.ends = frozenset(ends)
        self.add_bos = add_bos
        self.add_eos = add_eos
        self.add_space_prefix = add_space_prefix
        self.strips = frozenset(strips)
        self._ids = {token: k for k, token in enumerate(self.tokens)}
        self._pieces: dict[int, bytes] = {}
        found = np.flatnonzero(np.isin(self.types, _SPECIAL)).tolist()
        self._specials = sorted(found, key=lambda k: -len(self.tokens[k].encode()))

    @property
    def bos(self) -> int | None:
        """Id of the token that begins a text."""
        return self.special.get("bos")

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text."""
        return self.special.get("eos")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} tokens>"

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text, those of llama.cpp.

        Args:
            text: any text.
            add_special: put BOS before and EOS behind, where the model wants them.
            parse_special: a control token written out in the text, as "</s>", becomes that token.
                Pass False for text that comes from strangers. Tokens that the vocabulary's
                maker added as words of their own are found either way.

        Raises:
            DataError: the text holds half of a surrogate pair, or a byte without a token.
        """
        utf8(text)
        ids: list[int] = []
        if add_special and self.add_bos:
            ids.append(self.special["bos"])
        after_special = True
        for fragment in self._fragments(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._encode_text(fragment, after_special)
            after_special = isinstance(fragment, int)
        if add_special and self.add_eos:
            ids.append(self.special["eos"])
        return ids

    def decode(self, ids: ArrayLike, special: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        The space that `encode` puts before a text is taken off again.

        Args:
            ids: any number of ids.
            special: show control tokens, as "</s>", instead of leaving them out.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        values = np.atleast_1d(np.asarray(ids))
        if values.size and values.dtype.kind not in "iu":
            raise DataError(
                f"decode: ids are no integers: got {values.dtype}, want whole numbers from 0 to "
                f"{len(self) - 1}."
            )
        parts, is_first = [], self.add_space_prefix
        for token in values.ravel().tolist():
            raw = self.raw(token, special)
            if is_first and self.types[token] not in _HIDDEN:
                raw, is_first = raw.removeprefix(b" "), False
            parts.append(raw)
        return b"".join(parts).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        """A decoder that is fed id by id and never cuts a character.

        It takes the ids for what goes on from a text: their first space stays.
        """
        return StreamDecoder(self)

    def raw(self, token: int, special: bool = False) -> bytes:
        """The bytes a token stands for; none for control tokens unless `special` is set.

        Raises:
            DataError: no such id.
        """
        if not 0 <= token < len(self.tokens):
            raise DataError(
                f"decode: no such token: got id {token}, want 0 to {len(self) - 1}. Were the ids "
                "made with another vocabulary?"
            )
        kind = self.types[token]
        if kind in _HIDDEN:
            return self.tokens[token].encode() if special else b""
        if token not in self._pieces:
            self._pieces[token] = self._piece(self.tokens[token], kind)
        return self._pieces[token]

    def id_of(self, token: str) -> int:
        """Id of a token as stored, as "</s>".

        Raises:
            SettingError: the vocabulary has no such token.
        """
        if token not in self._ids:
            raise SettingError(
                f"tokenizer: no such token: got {token!r}, want one of the {len(self)} tokens as "
                "stored. See `tokens`."
            )
        return self._ids[token]

    @abstractmethod
    def _encode_text(self, text: str, after_special: bool) -> Iterable[int]:
        """Ids of a text without special tokens, at the start of all or behind a special one."""

    @abstractmethod
    def _piece(self, token: str, kind: int) -> bytes:
        """Bytes of a stored token that is not hidden."""

    def _fragments(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """The text cut at special tokens: the longest token first, then from left to right."""
        fragments: list[str | int] = [text]
        for token in self._specials:
            word = self.tokens[token]
            if word not in text or (not parse_special and self.types[token] in _HIDDEN):
                continue
            cut: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    cut.append(fragment)
                    continue
                first, *others = fragment.split(word)
                cut.append(first)
                for other in others:
                    stripped = other.lstrip(" \t\n\r\v\f") if token in self.strips else other
                    cut += (token, stripped)
            fragments = cut
        return (fragment for fragment in fragments if fragment != "")
