"""Tokenizers out of GGUF's `tokenizer.ggml.*` entries, with llama.cpp's defaults."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats import expect
from yupana.models.formats.gguf_cursor import shown
from yupana.models.tokenizer_base import Tokenizer, TokenType
from yupana.models.tokenizer_bpe import BpeTokenizer
from yupana.models.tokenizer_ends import adjust_types, end_tokens
from yupana.models.tokenizer_split import splitter
from yupana.models.tokenizer_spm import SpmTokenizer

_PREFIX = "tokenizer.ggml."
# Name here -> names in files, the last to be believed last.
_SPECIAL_KEYS = {
    "bos": ("bos",),
    "eos": ("eos",),
    "eot": ("eot",),
    "eom": ("eom",),
    "unknown": ("unknown",),
    "separator": ("seperator",),  # as GGUF spells it
    "padding": ("padding",),
    "mask": ("mask",),
    "fim_pre": ("fim_pre", "prefix"),
    "fim_suf": ("fim_suf", "suffix"),
    "fim_mid": ("fim_mid", "middle"),
    "fim_pad": ("fim_pad",),
    "fim_rep": ("fim_rep",),
    "fim_sep": ("fim_sep",),
}
_SPM_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}
_BPE_DEFAULTS = {"bos": 11, "eos": 11}  # Falcon's, which came first
_RSTRIP_NAMES = ("phi-3", "phi3")  # models whose special tokens swallow white space behind them
_NEVER_STRIPS = ("<unk>", "<s>", "<|endoftext|>")


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata of a file describe.

    Args:
        metadata: of a GGUF file, or a plain mapping as `write_gguf` takes it.

    Raises:
        FileFormatError: there is no vocabulary, it is of an unknown family, or its entries
            contradict each other.

    >>> entries = {"model": "gpt2", "pre": "gpt-2", "tokens": [*"abĠ", "ab"], "merges": ["a b"]}
    >>> tokenizer = read_tokenizer({f"tokenizer.ggml.{k}": v for k, v in entries.items()})
    >>> tokenizer.encode("ab b"), tokenizer.decode([3, 2, 1])
    ([3, 2, 1], 'ab b')
    """
    family = expect(metadata, f"{_PREFIX}model", str, "none")
    if family in ("none", "no_vocab"):
        raise FileFormatError(
            f"tokenizer: the file has no vocabulary: got tokenizer.ggml.model {family!r}, want "
            "'llama' or 'gpt2'. Load the tokenizer from the model that the file belongs to."
        )
    if family == "llama":
        return _read_spm(metadata)
    if family == "gpt2":
        return _read_bpe(metadata)
    raise FileFormatError(
        f"tokenizer: tokenizer.ggml.model is not known: got {shown(family)}, want 'llama' "
        "(SentencePiece) or 'gpt2' (byte-level BPE). Other families cannot be read."
    )


def _read_spm(metadata: Mapping[str, Any]) -> SpmTokenizer:
    tokens, types = _read_tokens(metadata)
    scores = _numbers(metadata, "scores", len(tokens), 0.0)
    if np.isnan(scores).any():
        raise _wrong("scores", f"NaN for token {int(np.isnan(scores).argmax())}", "numbers")
    for k in np.flatnonzero(np.equal(types, TokenType.BYTE)):
        if not _is_byte(tokens[k]):
            raise _wrong("tokens", f"{shown(tokens[k])} of type BYTE", "such tokens as <0x0A>")
    settings = _settings(metadata, tokens, types, _SPM_DEFAULTS, add_bos=True)
    space = expect(metadata, f"{_PREFIX}add_space_prefix", bool, True)
    return SpmTokenizer(tokens, types, scores=scores.tolist(), add_space_prefix=space, **settings)


def _read_bpe(metadata: Mapping[str, Any]) -> BpeTokenizer:
    split = splitter(expect(metadata, f"{_PREFIX}pre", str, "default"))
    tokens, types = _read_tokens(metadata)
    merges = expect(metadata, f"{_PREFIX}merges", list)
    for merge in merges:
        if not isinstance(merge, str) or " " not in merge:
            raise _wrong("merges", shown(merge), "two tokens and a space between them")
    settings = _settings(metadata, tokens, types, _BPE_DEFAULTS, add_bos=split.add_bos)
    return BpeTokenizer(tokens, types, merges=merges, splitter=split, **settings)


def _read_tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = expect(metadata, f"{_PREFIX}tokens", list)
    if set(map(type, tokens)) != {str}:
        raise _wrong("tokens", f"{len(tokens)} of them", "one text or more")
    tokens = [token or f"[EMPTY_{k}]" for k, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        ((twice, count),) = Counter(tokens).most_common(1)
        raise _wrong("tokens", f"{shown(twice)} {count} times", "each once")
    types = _numbers(metadata, "token_type", len(tokens), TokenType.NORMAL)
    if types.dtype.kind not in "iu":
        raise _wrong("token_type", f"numbers of type {types.dtype}", "integers")
    return tokens, adjust_types(tokens, types.tolist())


def _numbers(
    metadata: Mapping[str, Any], name: str, count: int, default: float
) -> np.ndarray[Any, Any]:
    """An array of one number per token; `default` for each where the file has none."""
    key = _PREFIX + name
    if key not in metadata:
        return np.full(count, default)
    values = np.asarray(metadata[key])
    if values.ndim != 1 or values.dtype.kind not in "iuf" or len(values) < count:
        got = f"{values.dtype} of shape {values.shape}"
        raise _wrong(name, got, f"{count} numbers, one per token")
    return values[:count]


def _settings(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    types: list[int],
    defaults: Mapping[str, int],
    add_bos: bool,
) -> dict[str, Any]:
    """What `Tokenizer` takes besides tokens and types."""
    special = {}
    for name, keys in _SPECIAL_KEYS.items():
        ids = [defaults.get(name, -1)]
        ids += [expect(metadata, f"{_PREFIX}{key}_token_id", int, -1) for key in keys]
        # llama.cpp writes 2^32 - 1 for "none" and does not mind an id that is none.
        known = [k for k in ids if 0 <= k < len(tokens)]
        if known:
            special[name] = known[-1]
    ends = end_tokens(tokens, types, special)
    settings: dict[str, Any] = {"special": special, "ends": ends}
    for setting, name, default in (("add_bos", "bos", add_bos), ("add_eos", "eos", False)):
        settings[setting] = expect(metadata, f"{_PREFIX}{setting}_token", bool, default)
        if settings[setting] and name not in special:
            want = f"an id below {len(tokens)}, as {_PREFIX}{setting}_token is true"
            raise _wrong(f"{name}_token_id", "none that is a token", want)
    model = expect(metadata, "general.name", str, "").lower()
    if any(name in model for name in _RSTRIP_NAMES):
        spared = {k for k, token in enumerate(tokens) if token in _NEVER_STRIPS}
        strips = [k for k, kind in enumerate(types) if kind in (2, 3, 4)]
        settings["strips"] = [k for k in strips if k not in spared]
    return settings


def _is_byte(token: str) -> bool:
    try:
        return token == f"<0x{int(token[3:5], 16):02X}>"
    except ValueError:
        return False


def _wrong(name: str, got: str, want: str) -> FileFormatError:
    return FileFormatError(
        f"tokenizer: {_PREFIX}{name} cannot be used: got {got}, want {want}. The file was "
        "written by a faulty program; convert the model again."
    )
