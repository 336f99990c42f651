"""From files to samples: plain text by finetune's rules, or JSON."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.errors import SettingError, require
from yupana.models.escapes import unescape
from yupana.train.corpus import Codec, Corpus, Ids, make_corpus
from yupana.train.forms import Entry, Template, read_entry
from yupana.train.json_data import read_json
from yupana.train.text import (
    PIECE,
    in_pieces,
    overlapping_samples,
    read_blocks,
    split_samples,
)

Part = tuple[Ids, bool]  # ids, and whether a sample ends with them

__all__ = ["DataRules", "Template", "is_json", "read_corpus", "read_texts", "text_corpus"]

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, kw_only=True)
class DataRules:
    """How data become samples; the names are those of ggml's finetune."""

    # Text that begins each sample; empty: a sample starts at every token.
    sample_start: str = ""
    # Samples begin with that text, not behind it.
    include_sample_start: bool = False
    # Process \n \r \t \' \" \\ \xHH in it.
    escape: bool = False
    # Samples go on over the starts of others, as far as the context can reach.
    overlapping_samples: bool = False
    # Put several samples into one window of context; none sees another.
    fill_with_next_samples: bool = False
    # An end token behind samples in a shared window (alone in one, a sample always has it).
    separate_with_eos: bool = False
    # A begin token before each sample in a shared window, not just before the first.
    separate_with_bos: bool = True
    # Begin somewhere within a sample, elsewhere each time it is used.
    sample_random_offsets: bool = False
    # JSON lines: learn prompts and what users say too, not answers only.
    train_on_prompt: bool = False
    # Share of the data kept for validation; 0: none. Of one text its end, else samples from all
    # over the data.
    validation: float = 0.1

    def check_data(self) -> None:
        """Check what is known without the data.

        Raises:
            SettingError: the validation share is out of range, or a rule needs another.
        """
        is_share = 0 <= self.validation < 1
        require("data", "validation", self.validation, is_share, "0 <= validation < 1")
        if self.overlapping_samples and not self.sample_start:
            raise SettingError(
                "data: overlapping_samples: got no sample_start, want one. Without, samples start "
                "at every token and overlap anyway."
            )


def read_corpus(
    path: str | PathLike[str],
    codec: Codec,
    rules: DataRules,
    n_ctx: int,
    template: Template | None = None,
) -> Corpus:
    """The samples of a file: of JSON by its suffix (.jsonl, .ndjson, .json), else plain text.

    Args:
        template: makes text of chat messages; needed where there are some.
    Raises:
        DataError: the file cannot be used; says where and why. SettingError: rules that do not
            go together.
    """
    if not is_json(path):
        return text_corpus(read_blocks(path), codec, rules, n_ctx)
    rules.check_data()
    if rules.sample_start:
        raise SettingError(
            f"data: sample_start: got {rules.sample_start!r} for {path}, want none: its entries "
            "are the samples."
        )
    ends = wants_eos(rules)

    def ids(entry: Any) -> Ids:
        return _ids(read_entry(entry, template, rules.train_on_prompt, ends), codec)

    parts = ((ids, True) for ids in read_json(path, ids))
    return make_corpus(parts, n_ctx, codec.bos is not None)


def is_json(path: str | PathLike[str]) -> bool:
    """Whether a file is read as JSON."""
    return Path(path).suffix.lower() in JSON_SUFFIXES


def text_corpus(blocks: Iterable[str], codec: Codec, rules: DataRules, n_ctx: int) -> Corpus:
    """The samples of a text that comes in blocks.

    Raises:
        DataError: no samples, or none begins as the rules say. SettingError: rules that do not go
            together.

    >>> from yupana.models.vocabulary import Vocabulary
    >>> codec = Codec.of(Vocabulary.from_bytes())
    >>> corpus = text_corpus(["#ab#c"], codec, DataRules(sample_start="#"), n_ctx=8)
    >>> [corpus.ids[a:b].tolist() for a, b in corpus.limits]
    [[97, 98, 256], [99, 256]]
    """
    rules.check_data()
    start = unescape(rules.sample_start) if rules.escape else rules.sample_start
    include = rules.include_sample_start
    if not start:
        texts: Iterable[tuple[str, bool]] = _as_one(blocks)
    elif rules.overlapping_samples:
        texts = overlapping_samples(blocks, start, codec.longest * n_ctx, include)
    else:
        texts = split_samples(blocks, start, include)
    # A text cut out of a longer one does not end where it is cut.
    has_end = bool(start) and not rules.overlapping_samples and wants_eos(rules)
    parts = _encoded(texts, codec, has_end)
    return make_corpus(parts, n_ctx, codec.bos is not None, is_stream=not start)


def wants_eos(rules: DataRules) -> bool:
    """Whether samples of plain text end with an end token."""
    return rules.separate_with_eos or not rules.fill_with_next_samples


def _as_one(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    yield from ((block, False) for block in blocks)
    yield "", True


def _encoded(texts: Iterable[tuple[str, bool]], codec: Codec, has_end: bool) -> Iterator[Part]:
    buffer = ""
    for text, ends in texts:
        buffer += text
        if not ends and len(buffer) < 2 * PIECE:
            continue
        pieces = [*in_pieces([buffer])]
        buffer = "" if ends else pieces.pop()
        for piece in pieces:
            yield np.asarray(codec.encode(piece, False), np.int32), False
        if ends:
            end = [codec.eos] if has_end and pieces and codec.eos is not None else []
            yield np.array(end, np.int32), True


def read_texts(path: str | PathLike[str], template: Template | None = None) -> Iterator[str]:
    """All the text of a file, in pieces, for making a vocabulary.

    Raises:
        DataError: as `read_corpus`.
    """
    if not is_json(path):
        yield from read_blocks(path)
        return
    yield from read_json(path, lambda entry: read_entry(entry, template).text)


def _ids(line: Entry, codec: Codec) -> Ids:
    """The ids of a line; those not learned as their complements.

    A token that reaches over the beginning of an answer belongs to it. The end of an answer is
    learned with it.
    """
    ids = np.array(codec.encode(line.text, line.special), np.int32)
    learned = np.full(len(ids), line.answers is None)
    for begin, end in line.answers or ():
        learned[_shared(ids, line.text[:begin], codec, line.special) :] = True
        learned[_shared(ids, line.text[:end], codec, line.special) :] = False
    ids = np.where(learned, ids, ~ids)
    # A conversation ends with what its template writes, but where that is no token.
    has_end = line.has_end or (line.special and not codec.has_control)
    if has_end and codec.eos is not None and len(ids):
        ids = np.append(ids, np.int32(codec.eos))
    return ids


def _shared(ids: Ids, text: str, codec: Codec, special: bool) -> int:
    """How many tokens at the beginning of `ids` are those of `text`."""
    prefix = np.asarray(codec.encode(text, special), np.int32)
    n = min(len(ids), len(prefix))
    differ = np.flatnonzero(ids[:n] != prefix[:n])
    return int(differ[0]) if len(differ) else n
