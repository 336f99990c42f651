"""Samples of token ids in a temporary file that is mapped: data of any size in little memory."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yupana.graphlib.errors import DataError
from yupana.models.tokenizer_base import Tokenizer
from yupana.models.vocabulary import Vocabulary

Ids = NDArray[np.int32]

_BUFFER = 1 << 18  # ids held back before they are written


@dataclass(frozen=True)
class Codec:
    """What it takes to make ids of text.

    Attributes:
        encode: text, and whether control tokens written out in it, as "</s>", become tokens; to
            ids. Nothing is put around them.
        bos: the token that begins a text; None where there is none, or prompts do not get it.
        eos: the token that ends a text; None where there is none.
        longest: bytes of the longest token as stored.
        has_control: there are control tokens to write out; else turns end with plain text.
    """

    encode: Callable[[str, bool], ArrayLike]
    bos: int | None
    eos: int | None
    longest: int
    has_control: bool = True

    @classmethod
    def of(cls, words: Vocabulary | Tokenizer) -> "Codec":
        """That of a vocabulary made here, or of a model file's tokenizer.

        >>> codec = Codec.of(Vocabulary.from_bytes())
        >>> codec.encode("ab", False).tolist(), codec.bos, codec.eos
        ([97, 98], None, 256)
        """
        longest = max(len(token.encode()) for token in words.tokens)
        if isinstance(words, Vocabulary):
            return cls(lambda text, special: words.encode(text), None, words.end, longest, False)

        def encode(text: str, special: bool) -> ArrayLike:
            return words.encode(text, add_special=False, parse_special=special)

        return cls(encode, words.bos if words.add_bos else None, words.eos, longest)


@dataclass
class Counts:
    """What was found in the data, in samples."""

    n_long: int = 0  # cut off, or used in parts: they do not fit the context
    n_short: int = 0  # do not fill it
    n_empty: int = 0  # left out
    n_silent: int = 0  # left out: nothing to learn in as much as fits the context
    least: int = 0  # tokens
    most: int = 0

    def lines(self, n_ctx: int) -> list[str]:
        """The counts in words, as far as there is something to say."""
        said = [
            (self.n_long, f"longer than the context of {n_ctx} (up to {self.most}), cut off"),
            (self.n_short, f"shorter than the context of {n_ctx} (down to {self.least})"),
            (self.n_empty, "empty, left out"),
            (self.n_silent, f"with no answer within the context of {n_ctx}, left out"),
        ]
        return [f"{n:,} sample{'s' if n > 1 else ''} {what}" for n, what in said if n]


@dataclass(frozen=True)
class Corpus:
    """Samples one after the other.

    Attributes:
        ids: (N,) i32; an id that is read but not learned is there as its complement ~id, which
            is negative.
        limits: (S, 2) i64, where each sample begins and ends in `ids`.
        hash: of the ids and limits.
        is_stream: all is one text, and a sample may start at any token.
    """

    ids: Ids
    limits: NDArray[np.int64]
    hash: str
    is_stream: bool
    counts: Counts = field(default_factory=Counts)


def make_corpus(
    parts: Iterable[tuple[ArrayLike, bool]], n_ctx: int, has_bos: bool, is_stream: bool = False
) -> Corpus:
    """Write samples to a file, and map it.

    The file is in the folder for temporary files (TMPDIR), has no name, and goes with the corpus.

    Args:
        parts: (ids, whether a sample ends with them).
        n_ctx: tokens of context.
        has_bos: the first token of a sample is learned too, since BOS comes before it.
        is_stream: see `Corpus`.
    Raises:
        DataError: there is no sample with something to learn. OSError: no room for the file; names
            the folder.

    >>> corpus = make_corpus([([5, 6, 7], True), ([~8, 9], True)], n_ctx=2, has_bos=False)
    >>> corpus.ids.tolist(), corpus.limits.tolist(), corpus.counts.n_long
    ([5, 6, 7, -9, 9], [[0, 3], [3, 5]], 0)
    """
    with tempfile.TemporaryFile() as ids_file, tempfile.TemporaryFile() as limits_file:
        writer = _Writer(ids_file, limits_file, n_ctx, has_bos)
        for part, ends in parts:
            writer.add(np.asarray(part, np.int32))
            if ends:
                writer.end()
        writer.flush()
        if not writer.n_samples:
            raise DataError(
                f"train data: no sample with anything to learn: got {writer.counts.n_empty} empty "
                f"samples and {writer.counts.n_silent} without an answer within the context of "
                f"{n_ctx}, want at least one. Use other data or a longer context."
            )
        # As plain arrays: NumPy takes a detour for each slice of a memmap.
        ids: Ids = np.asarray(np.memmap(ids_file, np.int32, "r"))
        limits = np.asarray(np.memmap(limits_file, np.int64, "r")).reshape(-1, 2)
    return Corpus(ids, limits, writer.hash.hexdigest(), is_stream, writer.counts)


class _Writer:
    """Appends ids and limits to files."""

    def __init__(self, ids: IO[bytes], limits: IO[bytes], n_ctx: int, has_bos: bool) -> None:
        self._ids_file, self._limits_file = ids, limits
        self._n_ctx, self._skipped = n_ctx, 0 if has_bos else 1
        self._ids: list[Ids] = []
        self._limits: list[tuple[int, int]] = []
        self._waiting = 0
        self._begin = self._at = 0
        self._teaches = False  # the sample has a token to learn within the context
        self.n_samples = 0
        self.counts = Counts()
        self.hash: Any = hashlib.blake2b(digest_size=8)

    def add(self, ids: Ids) -> None:
        """More ids of the present sample."""
        done = self._at - self._begin
        window = ids[max(0, self._skipped - done) : max(0, self._n_ctx + self._skipped - done)]
        self._teaches = self._teaches or bool((window >= 0).any())
        self._at += len(ids)
        self._ids.append(ids)
        self._waiting += len(ids)
        if self._waiting >= _BUFFER:
            self.flush()

    def end(self) -> None:
        """The present sample ends here."""
        counts, size = self.counts, self._at - self._begin
        if self._teaches:
            self._limits.append((self._begin, self._at))
            self.n_samples += 1
            counts.n_long += size > self._n_ctx + self._skipped
            counts.n_short += size < self._n_ctx + self._skipped
            counts.least = min(counts.least or size, size)
            counts.most = max(counts.most, size)
        elif size:
            counts.n_silent += 1
        else:
            counts.n_empty += 1
        self._begin, self._teaches = self._at, False

    def flush(self) -> None:
        """Write what is held back."""
        for values, file, dtype in (
            (np.concatenate([np.zeros(0, np.int32), *self._ids]), self._ids_file, "<i4"),
            (np.array(self._limits, np.int64), self._limits_file, "<i8"),
        ):
            try:
                file.write(values.tobytes())
                file.flush()
            except OSError as error:  # a full disk: the file has no name to tell
                said = f"{error.strerror}. Token ids go there: set TMPDIR to a folder with room."
                raise OSError(error.errno, said, tempfile.gettempdir()) from None
            self.hash.update(np.ascontiguousarray(values, dtype).tobytes())
        self._ids, self._limits, self._waiting = [], [], 0
