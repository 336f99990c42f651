"""Rows: what fills one window of context, taken from a corpus by number.

A row is a list of segments, each the ids of a sample or a part of one; a window of T tokens reads
T + 1 ids, since every token's target is the next one. BOS is put before segments here.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yupana.graphlib.errors import DataError
from yupana.train.corpus import Corpus, Ids
from yupana.train.shuffle import key_of, mixed


class Rows(ABC):
    """Rows by number.

    Attributes:
        n_ctx: T, tokens of a row.
    """

    n_ctx: int

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Tokens of the data they are taken from."""

    @property
    def is_packed(self) -> bool:
        """Whether a row may hold several segments."""
        return False

    @property
    def n_per_epoch(self) -> int:
        """Rows after which the data have been read once."""
        return len(self)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def segments(self, number: int, epoch: int = 0) -> list[Ids]:
        """The segments of a row, each with at most T + 1 ids.

        Args:
            epoch: how often the data were used before; random offsets differ.
        """


@dataclass(frozen=True)
class WindowRows(Rows):
    """A row for every token of one text.

    Raises:
        DataError: the context is longer than the text.

    >>> rows = WindowRows(np.arange(10, dtype=np.int32), n_ctx=3)
    >>> len(rows), rows.n_per_epoch, rows.segments(6)[0].tolist()
    (7, 3, [6, 7, 8, 9])
    """

    ids: Ids
    n_ctx: int
    bos: int | None = None
    what: str = "training data"

    def __post_init__(self) -> None:
        if len(self.ids) < self._width:
            raise DataError(
                f"{self.what}: the context is longer than the data: got {len(self.ids)} tokens for "
                f"a context of {self.n_ctx}, want at least {self._width}. Use more text or a "
                "shorter context."
            )

    @property
    def _width(self) -> int:
        return self.n_ctx + (self.bos is None)

    @property
    def n_tokens(self) -> int:
        """Of the text."""
        return len(self.ids)

    @property
    def n_per_epoch(self) -> int:
        """Windows of which each token is in one, not in T."""
        return max(1, len(self.ids) // self.n_ctx)

    def __len__(self) -> int:
        return len(self.ids) - self._width + 1

    def segments(self, number: int, epoch: int = 0) -> list[Ids]:
        """One window."""
        return [_with_bos(self.ids[number : number + self._width], self.bos)]


@dataclass(frozen=True)
class SampleRows(Rows):
    """A row for each of some samples, cut off where the context ends.

    Args:
        corpus: the samples.
        chosen: (n,) i64, numbers of those used.
        offsets_key: of random offsets into samples; None: each begins at its beginning.
    """

    corpus: Corpus
    chosen: NDArray[np.int64]
    n_ctx: int
    bos: int | None = None
    offsets_key: int | None = None

    @property
    def n_tokens(self) -> int:
        """Of the samples, those cut off included."""
        return int(self.sizes().sum())

    def __len__(self) -> int:
        return len(self.chosen)

    def sizes(self) -> NDArray[np.int64]:
        """Ids of each sample."""
        limits = self.corpus.limits[self.chosen]
        return limits[:, 1] - limits[:, 0]

    def segments(self, number: int, epoch: int = 0) -> list[Ids]:
        """One sample."""
        return [self.sample(number, epoch, self.bos)]

    def sample(self, number: int, epoch: int, bos: int | None) -> Ids:
        """A sample, BOS before it unless it has that itself; T + 1 ids at most."""
        begin, end = self.corpus.limits[self.chosen[number]].tolist()
        if self.offsets_key is not None:
            draw = int(mixed(key_of(self.offsets_key, epoch, number)))
            begin += draw % (end - begin)
        return _with_bos(self.corpus.ids[begin : min(end, begin + self.n_ctx + 1)], bos)[
            : self.n_ctx + 1
        ]


class PackedRows(Rows):
    """Rows of several whole samples each, as many as fit: best fit, the longest first.

    Every sample is in one row, and rows stay together from epoch to epoch; no row sees another
    sample's tokens, so it does not matter which ones they share.

    Args:
        samples: what to pack.
        bos_between: BOS before each sample, not just before the first of a row.
    """

    def __init__(self, samples: SampleRows, bos_between: bool = True) -> None:
        self.samples, self.bos_between = samples, bos_between
        self.n_ctx = samples.n_ctx
        extra = 0 if samples.bos is None else 1
        lengths = np.minimum(samples.sizes() + extra - 1, samples.n_ctx)
        self._members, self._starts = pack(lengths, samples.n_ctx)

    @property
    def is_packed(self) -> bool:
        """A row may hold several segments."""
        return True

    @property
    def n_tokens(self) -> int:
        """Of the samples."""
        return self.samples.n_tokens

    def __len__(self) -> int:
        return len(self._starts) - 1

    def segments(self, number: int, epoch: int = 0) -> list[Ids]:
        """The samples of a row."""
        samples = self.samples
        members = self._members[self._starts[number] : self._starts[number + 1]]
        return [
            samples.sample(member, epoch, samples.bos if self.bos_between or k == 0 else None)
            for k, member in enumerate(members.tolist())
        ]


def _with_bos(ids: Ids, bos: int | None) -> Ids:
    if bos is None or (len(ids) and bos in (ids[0], ~ids[0])):
        return ids
    return np.concatenate([np.array([bos], np.int32), ids])


def pack(lengths: ArrayLike, room: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put pieces into bins of equal room: the longest first, each where it leaves least free.

    Args:
        lengths: (n,) integers from 0 to `room`.
    Returns:
        (n,) numbers of pieces in the order of bins, and (bins + 1,) where each bin begins there.

    >>> members, starts = pack([4, 7, 3, 5], room=10)
    >>> [members[a:b].tolist() for a, b in zip(starts[:-1], starts[1:])]
    [[1, 2], [3, 0]]
    """
    sizes = np.asarray(lengths, np.int64)
    bin_of = np.empty(len(sizes), np.int64)
    by_room: dict[int, list[int]] = {}  # room left, to bins that have it
    rooms: list[int] = []  # its keys in order
    n_bins = 0
    order = np.argsort(-sizes, kind="stable")
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            left, chosen = room, n_bins
            n_bins += 1
        else:
            left = rooms[at]
            chosen = by_room[left].pop()
            if not by_room[left]:
                del by_room[left], rooms[at]
        bin_of[number] = chosen
        left -= size
        if left not in by_room:
            by_room[left] = []
            bisect.insort(rooms, left)
        by_room[left].append(chosen)
    members = order[np.argsort(bin_of[order], kind="stable")]
    starts = np.searchsorted(bin_of[members], np.arange(n_bins + 1))
    return members.astype(np.int64), starts.astype(np.int64)
