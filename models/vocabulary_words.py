"""Vocabularies of old files, a list of byte strings, as GGUF's `tokenizer.ggml.*` entries."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from yupana.models.tokenizer_base import TokenType
from yupana.models.tokenizer_bytes import spell
from yupana.models.tokenizer_ends import adjust_types
from yupana.models.tokenizer_merge import merge

_FIRST_BYTE = 3  # id of the token of byte 0 in vocabularies of SentencePiece
_SPECIAL = (("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL))
_END = "<|endoftext|>"


def spm_entries(words: Sequence[bytes], scores: Sequence[float]) -> dict[str, Any]:
    r"""The entries of llama2.c's `tokenizer.bin`, whose first tokens are those of LLaMA.

    Its writer puts a space for SentencePiece's U+2581, and in most versions one character for a
    byte token; ids tell which are meant.

    >>> entries = spm_entries([b"<unk>", b"\n<s>\n", b"\n</s>\n", b"\x00", b" a"], [0.0] * 5)
    >>> entries["tokenizer.ggml.tokens"]
    ['<unk>', '<s>', '</s>', '<0x00>', '▁a']
    """
    tokens, types = [], []
    for k, word in enumerate(words):
        byte = k - _FIRST_BYTE
        if k < len(_SPECIAL):
            token, kind = _SPECIAL[k]
        elif byte < 256 and word in (chr(byte).encode(), b"<0x%02X>" % byte):
            token, kind = f"<0x{byte:02X}>", TokenType.BYTE
        else:
            token, kind = word.decode("utf-8", "replace").replace(" ", "\u2581"), TokenType.NORMAL
        tokens.append(token)
        types.append(int(kind))
    tokens, types = _without_doubles(tokens, types)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def bpe_entries(words: Sequence[bytes], splitting: str) -> dict[str, Any]:
    """The entries of a byte-level BPE of which only the tokens are known, not the merges.

    Ids follow the order in which merges were learned, so the last merge that makes a token joins
    the two pieces that all earlier ones leave of it. A token left in more pieces was never
    learned: it was added, as `<|endoftext|>`.

    Args:
        words: the bytes of each token.
        splitting: `tokenizer.ggml.pre`.

    >>> entries = bpe_entries([b"a", b"b", b"ab", b"aba", b"<|endoftext|>"], "gpt-2")
    >>> entries["tokenizer.ggml.merges"], entries["tokenizer.ggml.token_type"].tolist()
    (['a b', 'ab a'], [1, 1, 1, 1, 3])
    """
    tokens, types = _without_doubles(
        [spell(word) for word in words], [int(TokenType.NORMAL)] * len(words)
    )
    ranks: dict[str, float] = {}
    merges = []
    for k, token in enumerate(tokens):
        if types[k] != TokenType.NORMAL or len(token) < 2:
            continue
        pieces = merge(token, ranks)
        if len(pieces) == 2:
            merges.append(" ".join(pieces))
            ranks[token] = k
        else:
            types[k] = int(TokenType.CONTROL)
            tokens[k] = words[k].decode("utf-8", "replace")
    types = adjust_types(tokens, types)
    entries: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splitting,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    if _END in tokens:
        for name in ("bos", "eos", "unknown"):
            entries[f"tokenizer.ggml.{name}_token_id"] = tokens.index(_END)
    return entries


def _without_doubles(tokens: list[str], types: list[int]) -> tuple[list[str], list[int]]:
    """Later ones of equal tokens, and empty ones, get a name of their own that no text has."""
    seen: set[str] = set()
    for k, token in enumerate(tokens):
        if token in seen or not token:
            tokens[k], types[k] = f"[PAD{k}]", int(TokenType.UNUSED)
        seen.add(tokens[k])
    return tokens, types
