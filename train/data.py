"""Training data: samples kept for validation, and batches of the others in shuffled order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import require
from yupana.train.corpus import Codec, Corpus, Ids
from yupana.train.rows import PackedRows, Rows, SampleRows, WindowRows
from yupana.train.samples import DataRules
from yupana.train.shuffle import Permutation, key_of

_ORDER, _OFFSETS = 0, 1  # streams of one seed


class Batch(NamedTuple):
    """What a training step reads: B windows of T tokens.

    Attributes:
        tokens: (B, T) i32.
        targets: (B, T) i32, the token that follows each; a negative one does not count.
        positions: (B, T) i32, of packed windows: each token's place within its segment.
        segments: (B, T) i32, of packed windows: attention stays within equal numbers, 0 being
            what is left free.
    """

    tokens: Ids
    targets: Ids
    positions: Ids | None = None
    segments: Ids | None = None


def make_batch(rows: Sequence[Sequence[Ids]], n_ctx: int, is_packed: bool) -> Batch:
    """Lay segments side by side; what is left of a row counts for nothing.

    >>> batch = make_batch([[np.array([~5, 6, 7])]], n_ctx=4, is_packed=False)
    >>> batch.tokens.tolist(), batch.targets.tolist()
    ([[5, 6, 0, 0]], [[6, 7, -1, -1]])
    """
    shape = (len(rows), n_ctx)
    tokens, targets = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for b, row in enumerate(rows):
        at = 0
        for k, ids in enumerate(row):
            place = np.s_[b, at : at + len(ids) - 1]
            tokens[place] = (ids ^ (ids >> 31))[:-1]  # ~id of what is not learned
            targets[place] = np.maximum(ids[1:], -1)
            positions[place] = np.arange(len(ids) - 1)
            segments[place] = k + 1
            at += len(ids) - 1
    return Batch(tokens, targets, positions, segments) if is_packed else Batch(tokens, targets)


@dataclass(frozen=True)
class Batches:
    """Batches of rows in shuffled order: each row once, then all again in another order.

    Batch number `step` depends on the seed and `step` alone: a resumed run goes on where the
    last one stopped, knowing no more than the step.

    Args:
        rows: what batches are made of.
        n_batch: B, rows per batch.
        seed: at least 0.
        offset: row that batch 0 begins with; below 0 if the first ones were smaller than n_batch.
    Raises:
        SettingError: a setting out of range.

    >>> rows = WindowRows(np.arange(100, dtype=np.int32), n_ctx=4)
    >>> batch = Batches(rows, n_batch=2, seed=1).at(0)
    >>> batch.tokens.shape, (batch.targets - batch.tokens).tolist()
    ((2, 4), [[1, 1, 1, 1], [1, 1, 1, 1]])
    """

    rows: Rows
    n_batch: int
    seed: int = 1337
    offset: int = 0

    def __post_init__(self) -> None:
        _check_at_least("n_batch", self.n_batch, 1)
        _check_at_least("seed", self.seed, 0)

    def at(self, step: int) -> Batch:
        """Batch number `step`, counted from 0."""
        _check_at_least("step", step, 0)
        n, chosen = len(self.rows), []
        place = self.offset + step * self.n_batch
        end = place + self.n_batch
        while place < end:
            round_, at = divmod(place, n)
            count = min(end - place, n - at)
            numbers = Permutation(n, key_of(self.seed, _ORDER, round_))(np.arange(at, at + count))
            chosen += [self.rows.segments(number, round_) for number in numbers.tolist()]
            place += count
        return make_batch(chosen, self.rows.n_ctx, self.rows.is_packed)

    def epochs(self, step: int) -> float:
        """How often the data have been read after so many steps."""
        return (self.offset + step * self.n_batch) / self.rows.n_per_epoch

    def steps(self, epochs: int) -> int:
        """Steps that read the data so many times."""
        return -((self.offset - epochs * self.rows.n_per_epoch) // self.n_batch)


def even_batch(rows: Rows, most: int) -> Batch:
    """At most `most` rows spread evenly over the data, to measure a loss on.

    Raises:
        SettingError: `most` is below 1.

    >>> even_batch(WindowRows(np.arange(9, dtype=np.int32), n_ctx=2), most=3).tokens.tolist()
    [[0, 1], [3, 4], [6, 7]]
    """
    _check_at_least("rows", most, 1)
    numbers = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    chosen = [rows.segments(number) for number in numbers.tolist()]
    return make_batch(chosen, rows.n_ctx, rows.is_packed)


@dataclass(frozen=True)
class Data:
    """A corpus made ready for training.

    Attributes:
        training, validation: rows; None where nothing is kept for validation.
        hash: of the training data and of how they become rows: what a resumed run has to find.
        notes: lines about the samples, for the user.
    """

    training: Rows
    validation: Rows | None
    hash: str
    notes: tuple[str, ...] = ()


def prepare_data(corpus: Corpus, codec: Codec, rules: DataRules, n_ctx: int, seed: int) -> Data:
    """Split a corpus, and make rows of both parts.

    Raises:
        DataError: a part is too short for one window.

    >>> from yupana.models.vocabulary import Vocabulary
    >>> from yupana.train.samples import text_corpus
    >>> codec, rules = Codec.of(Vocabulary.from_bytes()), DataRules(validation=0.25)
    >>> corpus = text_corpus(["a text of some length"], codec, rules, n_ctx=3)
    >>> data = prepare_data(corpus, codec, rules, n_ctx=3, seed=1)
    >>> data.training.n_tokens, data.validation.n_tokens
    (16, 5)
    """
    own = [getattr(rules, rule.name) for rule in fields(DataRules)]  # not those of a subclass
    hash_ = hashlib.blake2b(repr((corpus.hash, own, n_ctx)).encode(), digest_size=8)
    if corpus.is_stream:
        training, validation = _split_text(corpus.ids, n_ctx, codec.bos, rules.validation)
        return Data(training, validation, hash_.hexdigest())
    offsets = key_of(seed, _OFFSETS) if rules.sample_random_offsets else None
    parts: list[Rows | None] = []
    for chosen in _split_samples(len(corpus.limits), rules.validation):
        rows: Rows | None = None
        if len(chosen):
            key = None if parts else offsets  # validation is the same each time
            rows = SampleRows(corpus, chosen, n_ctx, codec.bos, key)
            if rules.fill_with_next_samples:
                rows = PackedRows(rows, rules.separate_with_bos)
        parts.append(rows)
    assert parts[0] is not None
    return Data(parts[0], parts[1], hash_.hexdigest(), tuple(corpus.counts.lines(n_ctx)))


def _split_text(
    ids: Ids, n_ctx: int, bos: int | None, share: float
) -> tuple[WindowRows, WindowRows | None]:
    """The end of the text is for validation: windows elsewhere would overlap those trained on."""
    if not share:
        return WindowRows(ids, n_ctx, bos), None
    width = n_ctx + (bos is None)
    count = max(round(len(ids) * share), min(width, len(ids) // 2))
    validation = WindowRows(ids[len(ids) - count :], n_ctx, bos, "validation data")
    return WindowRows(ids[: len(ids) - count], n_ctx, bos), validation


def _split_samples(n: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of samples for training and for validation, these evenly from all over the data."""
    every = np.arange(n)
    count = min(max(round(n * share), 1), n - 1) if share else 0
    is_kept = (every + 1) * count // n > every * count // n
    return every[~is_kept], every[is_kept]


def _check_at_least(name: str, value: int, least: int) -> None:
    require("batches", name, value, value >= least, f"at least {least}")
