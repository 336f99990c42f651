"""From files to samples: plain text by finetune's rules, or JSON lines."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from yupana.graphlib.errors import DataError, SettingError, YupanaError, require
from yupana.train.corpus import Codec, Corpus, Ids, make_corpus
from yupana.train.text import (
    PIECE,
    in_pieces,
    not_utf8,
    open_data,
    overlapping_samples,
    read_blocks,
    split_samples,
    unescape,
)

# Messages, and whether the turn of the assistant shall be opened at the end; to text.
Template = Callable[[Sequence[Mapping[str, Any]], bool], str]
Part = tuple[Ids, bool]  # ids, and whether a sample ends with them
_T = TypeVar("_T")

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_FORMS = '{"text": …}, {"prompt": …, "completion": …} or {"messages": […]}'


@dataclass(frozen=True, kw_only=True)
class DataRules:
    """How data become samples; the names are those of ggml's finetune."""

    # Text that begins each sample; empty: a sample starts at every token.
    sample_start: str = ""
    # Samples begin with that text, not behind it.
    include_sample_start: bool = False
    # Process \n \r \t \' \" \\ in it.
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
    """The samples of a file: JSON lines by its suffix (.jsonl, .ndjson, .json), else plain text.

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
            f"data: sample_start: got {rules.sample_start!r} for {path}, want none: its lines are "
            "the samples."
        )
    parts = (
        (i, True) for i in _lines(path, lambda raw: _ids(_parsed(raw, rules, template), codec))
    )
    return make_corpus(parts, n_ctx, codec.bos is not None)


def is_json(path: str | PathLike[str]) -> bool:
    """Whether a file is read as JSON lines."""
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


class _Line(NamedTuple):
    """A line of JSON as text."""

    text: str
    answers: list[tuple[int, int]] | None  # (begin, end) of what is learned; None: all
    special: bool  # control tokens written out in it are tokens
    has_end: bool  # an end token follows


def read_texts(path: str | PathLike[str], template: Template | None = None) -> Iterator[str]:
    """All the text of a file, in pieces, for making a vocabulary.

    Raises:
        DataError: as `read_corpus`.
    """
    if not is_json(path):
        yield from read_blocks(path)
        return
    yield from _lines(path, lambda raw: _parsed(raw, DataRules(), template).text)


def _lines(path: str | PathLike[str], make: Callable[[str], _T]) -> Iterator[_T]:
    """What `make` makes of each line that is not blank; its errors get file and line number."""
    path, is_empty = Path(path), True
    with open_data(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as e:
                at = file.tell() - len(raw) + e.start
                raise not_utf8(path, e, at, number) from None
            if not text:
                continue
            is_empty = False
            try:
                yield make(text)
            except YupanaError as e:
                raise DataError(f"train data: {path}: line {number}: {e}") from None
    if is_empty:
        raise DataError(f"train data: {path}: got an empty file, want lines of JSON: {_FORMS}.")


def _parsed(raw: str, rules: DataRules, template: Template | None) -> _Line:
    try:
        entry = json.loads(raw)
    except ValueError as e:
        where = f" at column {e.colno}" if isinstance(e, json.JSONDecodeError) else ""
        raise DataError(
            f"not JSON{where}: got {raw[:40]!r}, want one object in one line: {_FORMS}."
        ) from None
    if not isinstance(entry, dict):
        raise DataError(f"got {type(entry).__name__}, want an object: {_FORMS}.")
    if "messages" in entry:
        text, answers = _chat(entry["messages"], template, rules)
        return _Line(text, None if rules.train_on_prompt else answers, True, False)
    if "prompt" in entry and "completion" in entry:
        prompt = _string(entry, "prompt")
        text = prompt + _string(entry, "completion")
        return _Line(
            text, None if rules.train_on_prompt else [(len(prompt), len(text))], False, True
        )
    if "text" in entry:
        return _Line(_string(entry, "text"), None, False, wants_eos(rules))
    raise DataError(f"no known form: got keys {[*entry]}, want {_FORMS}.")


def _ids(line: _Line, codec: Codec) -> Ids:
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
    if line.has_end and codec.eos is not None and len(ids):
        ids = np.append(ids, np.int32(codec.eos))
    return ids


def _string(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise DataError(f"{key}: got {type(value).__name__}, want a string.")
    return value


def _shared(ids: Ids, text: str, codec: Codec, special: bool) -> int:
    """How many tokens at the beginning of `ids` are those of `text`."""
    prefix = np.asarray(codec.encode(text, special), np.int32)
    n = min(len(ids), len(prefix))
    differ = np.flatnonzero(ids[:n] != prefix[:n])
    return int(differ[0]) if len(differ) else n


def _chat(
    messages: Any, template: Template | None, rules: DataRules
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where in it the assistant speaks."""
    if template is None:
        raise DataError(
            "messages: got a conversation, want a chat template for it. Use a model that has one, "
            "pass --chat-template, or write lines with text, or with prompt and completion."
        )
    if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
        raise DataError(
            'messages: got something else, want a list of {"role": …, "content": …} objects.'
        )
    for k, message in enumerate(messages):
        content = message.get("content")
        # Templates write lists of parts, and calls of tools, each in their own way.
        if not isinstance(content, str | list) and "tool_calls" not in message:
            got = type(content).__name__ if "content" in message else "none"
            raise DataError(f"messages: content of message {k + 1}: got {got}, want a string.")
    whole = template(messages, False)
    answers: list[tuple[int, int]] = []
    for k, message in enumerate(messages):
        if message["role"] != "assistant" or rules.train_on_prompt:
            continue
        before, through = template(messages[:k], True), template(messages[: k + 1], False)
        if not (through.startswith(before) and whole.startswith(through)):
            raise DataError(
                f"messages: the template writes message {k + 1} differently when others follow: "
                "the answer cannot be told from the rest. Set train_on_prompt to learn all."
            )
        answers.append((len(before), len(through)))
    return whole, answers


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)
