"""Vocabularies as GGUF's `tokenizer.ggml.*` entries, which llama.cpp reads."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats import Metadata, expect
from yupana.models.tokenizer_base import Tokenizer
from yupana.models.tokenizer_gguf import read_tokenizer
from yupana.models.vocabulary import Vocabulary

Words: TypeAlias = Vocabulary | Tokenizer  # one made here, or that of any model file

_KIND = "yupana.vocabulary"
_NORMAL, _CONTROL = 1, 3  # token types
_SPLITTERS = ("gpt-2", "gpt2")  # values of tokenizer.ggml.pre that mean GPT-2's expression


def vocabulary_metadata(vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The entries that describe a vocabulary, for `write_gguf`.

    >>> entries = vocabulary_metadata(Vocabulary.from_characters("né"))
    >>> entries["tokenizer.ggml.tokens"], entries["tokenizer.ggml.merges"]
    (['n', 'Ã©', '<|endoftext|>'], ['Ã ©'])
    """
    if vocabulary is None:
        return {"tokenizer.ggml.model": "none"}
    types = [_CONTROL if k in vocabulary.special else _NORMAL for k in range(len(vocabulary))]
    entries: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
        "tokenizer.ggml.add_bos_token": False,
        # Ours, since the rest does not tell a character vocabulary from learned merges.
        _KIND: vocabulary.kind,
    }
    if vocabulary.end is not None:
        entries["tokenizer.ggml.bos_token_id"] = vocabulary.end
        entries["tokenizer.ggml.eos_token_id"] = vocabulary.end
    return entries


def read_words(metadata: Metadata) -> tuple[Words, dict[str, Any]]:
    """The vocabulary of a file, of any family, and its entries as another file needs them.

    Raises:
        FileFormatError: there is none, or none that can be read.
    """
    words: Words | None = read_vocabulary(metadata) if _KIND in metadata else None
    entries = {k: v for k, v in metadata.typed().items() if k.startswith(("tokenizer.", _KIND))}
    return words or read_tokenizer(metadata), entries


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary | None:
    """The vocabulary that a file's metadata describe; None where there is none.

    Raises:
        FileFormatError: the entries contradict each other, or are of a family other than GPT-2's.
    """
    family = expect(metadata, "tokenizer.ggml.model", str, "none")
    if family in ("none", "no_vocab"):
        return None
    splitter = expect(metadata, "tokenizer.ggml.pre", str, "gpt-2")
    if family != "gpt2" or splitter not in _SPLITTERS:
        raise FileFormatError(
            f"vocabulary: cannot be read yet: got model {family!r}, splitting {splitter!r}; want "
            "model 'gpt2' with splitting 'gpt-2'."
        )
    tokens = expect(metadata, "tokenizer.ggml.tokens", list)
    types = expect(metadata, "tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    merges = [_pair(m) for m in expect(metadata, "tokenizer.ggml.merges", list)]
    kind = expect(metadata, _KIND, str, "bpe")
    end = expect(metadata, "tokenizer.ggml.eos_token_id", int, -1)
    _check(tokens, types, end)
    special = [k for k, t in enumerate(types) if t == _CONTROL]
    try:
        return Vocabulary(kind, tokens, merges, special, None if end < 0 else end)
    except ValueError as e:
        raise FileFormatError(f"vocabulary: the stored entries do not fit: {e}") from None


def _check(tokens: list[Any], types: list[Any], end: int) -> None:
    rules = (
        (all(isinstance(t, str) for t in tokens), "tokens of another type", "text"),
        (len(tokens) > 0, "no tokens", "at least one"),
        (len(set(tokens)) == len(tokens), "a token twice", "each once"),
        (len(types) == len(tokens), f"{len(types)} token types", f"{len(tokens)}, one per token"),
        (end < len(tokens), f"end token {end}", f"an id below {len(tokens)}"),
    )
    for is_right, got, want in rules:
        if not is_right:
            raise FileFormatError(f"vocabulary: tokenizer.ggml entries: got {got}, want {want}.")


def _pair(merge: Any) -> tuple[str, str]:
    left, space, right = str(merge).partition(" ")
    if not (left and space and right):
        raise FileFormatError(
            f"vocabulary: a merge is no pair: got {merge!r}, want two tokens and a space."
        )
    return left, right
