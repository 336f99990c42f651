"""Vocabularies: text to token ids and back, kept in GGUF so that llama.cpp reads them too.

All three kinds are byte-level BPE of the GPT-2 family ("gpt2" in GGUF), the one family that is
exact for any text:

- bytes: the 256 bytes and no merges; ids are byte values;
- characters: the characters of the training text; a character of several bytes is stored as the
  merges that put it together, which no other text can set off;
- bpe: merges learned from the training text by the `tokenizers` package, after GPT-2's splitting.

Each has one more token, END (`<|endoftext|>`), that no text encodes to. It stands between
documents, and llama.cpp needs it: without an end token it takes token 11 for one.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.tokenizer_bytes import LETTERS, StreamDecoder, spell, unspell, utf8

Kind = Literal["bytes", "characters", "bpe"]
Ids = NDArray[np.int32]

END = "<|endoftext|>"
# `tokenizers` takes about 200 bytes per character it is given at once, and shares the pieces of a
# batch among the cores; text is cut where GPT-2's splitting cuts anyway, so that the ids are the
# same.
_PIECE, _BATCH = 1 << 13, 128
_CUT = re.compile(r"(?<=[!-~]\n)(?=[!-~])")


class Vocabulary:
    """The tokens of a model, from `from_bytes`, `from_characters`, `train` or a file.

    Attributes:
        kind: "bytes", "characters" or "bpe".
        tokens: each token as stored, in GPT-2's printable letters; END and its like in clear.
        merges: pairs of stored tokens, the first to be joined first.
        end: id of END, or None where a file has none.
    Raises:
        SettingError: no such kind. DataError: tokens that do not fit the kind.

    >>> vocabulary = Vocabulary.from_characters("a llama, a ñandú")
    >>> vocabulary.encode("ñam").tolist(), vocabulary.decode([4, 2, 7, 2])
    ([7, 2, 5], 'laña')
    """

    def __init__(
        self,
        kind: Kind,
        tokens: Sequence[str],
        merges: Sequence[tuple[str, str]] = (),
        special: Iterable[int] = (),
        end: int | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise SettingError(
                f"vocabulary: no such kind: got {kind!r}, want one of {', '.join(get_args(Kind))}."
            )
        self.kind: Kind = kind
        self.tokens = list(tokens)
        self.merges = list(merges)
        self.special = frozenset(special)
        self.end = end
        self._raw = [self._raw_bytes(k) for k in range(len(self.tokens))]
        if kind == "bytes" and self._raw[:256] != [bytes([b]) for b in range(256)]:
            raise DataError("vocabulary: got kind 'bytes', want the 256 bytes as first tokens.")
        if kind == "characters":
            self._points, self._ids = self._character_table()
        if kind == "bpe":
            self._tokenizer = self._make_tokenizer()

    @classmethod
    def from_bytes(cls) -> "Vocabulary":
        """The 256 bytes: nothing to learn, and any text can be encoded."""
        return cls("bytes", [*LETTERS, END], special=[256], end=256)

    @classmethod
    def from_characters(cls, text: str) -> "Vocabulary":
        """The characters of `text`, in order of code point.

        Raises:
            DataError: `text` is empty or holds half of a surrogate pair.
        """
        _check_text(text)
        raws = [character.encode() for character in sorted(set(text))]
        merges = {
            (spell(raw[:k]), spell(raw[k : k + 1])): None
            for raw in raws
            for k in range(1, len(raw))
        }
        tokens = [*map(spell, raws), END]
        return cls("characters", tokens, [*merges], [len(raws)], len(raws))

    @classmethod
    def train(cls, text: str, n_vocab: int) -> "Vocabulary":
        """BPE with `n_vocab` tokens learned from `text`; fewer where it has no more pairs.

        Raises:
            SettingError: `n_vocab` is below 257 (the bytes and END).
            DataError: `text` is empty or holds half of a surrogate pair.
        """
        _check_text(text)
        if n_vocab < 257:
            raise SettingError(
                f"vocabulary: n_vocab is too small: got {n_vocab}, want at least 257 (256 bytes "
                "and the end token). Use a character vocabulary for fewer tokens."
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = _splitter()
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab - 1, initial_alphabet=sorted(LETTERS), show_progress=False
        )
        tokenizer.train_from_iterator([text], trainer)
        ids = tokenizer.get_vocab()
        tokens = sorted(ids, key=lambda token: ids[token])
        merges = _learned_merges(tokenizer)
        return cls("bpe", [*tokens, END], merges, [len(tokens)], len(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<Vocabulary of {len(self)} tokens, {self.kind}>"

    def encode(self, text: str) -> Ids:
        """The ids of `text`, shape (n,) int32; empty for an empty text. END never comes out.

        Raises:
            DataError: a character is not in the vocabulary, or is half of a surrogate pair.
        """
        if not text:
            return np.zeros(0, np.int32)
        raw = utf8(text)
        if self.kind == "bytes":
            return np.frombuffer(raw, np.uint8).astype(np.int32)
        if self.kind == "characters":
            return self._encode_characters(text)
        parts, cut = [], _cut(text)
        while pieces := list(islice(cut, _BATCH)):
            found = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            parts += [np.array(part.ids, np.int32) for part in found]
        ids: Ids = np.concatenate(parts)
        if sum(map(len, self._pieces(ids.tolist()))) != len(raw):
            raise DataError(
                f"encode: a byte of the text is no token: got {text[:40]!r}…, want text of the "
                f"{len(self)} tokens of this vocabulary. It lacks some of the 256 bytes."
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """The text of `ids`; END is left out, bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        values = np.asarray(ids)
        return b"".join(self._pieces(values.tolist())).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """A decoder that is fed id by id and never cuts a character."""
        return StreamDecoder(self)

    def raw(self, token: int) -> bytes:
        """The bytes a token stands for; none for END and its like.

        Raises:
            DataError: the id is not in the vocabulary.
        """
        if not 0 <= token < len(self):
            raise DataError(
                f"decode: no such token: got id {token}, want 0 to {len(self) - 1}. Were the ids "
                "made with another vocabulary?"
            )
        return self._raw[token]

    def _raw_bytes(self, k: int) -> bytes:
        if k in self.special:
            return b""
        return unspell(self.tokens[k])

    def _pieces(self, ids: Iterable[int]) -> list[bytes]:
        return [self.raw(k) for k in ids]

    def _encode_characters(self, text: str) -> Ids:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        at = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
        unknown = np.flatnonzero(self._points[at] != points)
        if len(unknown):
            character = text[unknown[0]]
            raise DataError(
                f"encode: character {unknown[0]} is not in the vocabulary: got {character!r} "
                f"(U+{ord(character):04X}), want one of {len(self._points)} characters. Leave it "
                "out, or train with a byte or BPE vocabulary."
            )
        ids: Ids = self._ids[at]
        return ids

    def _character_table(self) -> tuple[NDArray[np.uint32], Ids]:
        """Code points in order, and the id of each."""
        known = {raw.decode("utf-8", "replace"): k for k, raw in enumerate(self._raw) if raw}
        if not known or any(len(character) != 1 for character in known):
            raise DataError("vocabulary: got kind 'characters', want one character per token.")
        points = sorted(known)
        ids = np.array([known[character] for character in points], np.int32)
        return np.array([*map(ord, points)], np.uint32), ids

    def _make_tokenizer(self) -> Tokenizer:
        normal = {t: k for k, t in enumerate(self.tokens) if k not in self.special}
        try:
            tokenizer = Tokenizer(models.BPE(vocab=normal, merges=self.merges))
        except Exception as e:  # noqa: BLE001  `tokenizers` raises plain Exception
            raise DataError(f"vocabulary: the merges do not fit the tokens: {e}") from None
        tokenizer.pre_tokenizer = _splitter()
        return tokenizer


def _splitter() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _learned_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    pairs = []
    for merge in json.loads(tokenizer.to_str())["model"]["merges"]:
        # Older versions of `tokenizers` write "left right"; no stored token holds a space.
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def _cut(text: str) -> Iterator[str]:
    """Pieces of `_PIECE` characters or more that GPT-2's splitting would not join."""
    start = 0
    while start < len(text):
        found = _CUT.search(text, start + _PIECE)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def _check_text(text: str) -> None:
    if not text:
        raise DataError(
            "vocabulary: the text is empty: got no characters, want some to learn from. Pass the "
            "training text."
        )
    utf8(text)
