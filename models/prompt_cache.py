"""Prompt caches: what a session holds, with its tokens, in a file of its own.

The file is GGUF. It names the model it belongs to by a fingerprint, and is refused by another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.decoder import Decoder
from yupana.models.formats import GgufFile, expect, expect_integers, write_gguf

_TYPE = "prompt-cache"
_PREFIX = "yupana.prompt_cache."
_BLOCK_BYTES, _BLOCKS = 4096, 4  # of each weight that the fingerprint looks at


@dataclass(frozen=True, eq=False)
class PromptCache:
    """Tokens, and the state of a session that has read them.

    Attributes:
        tokens: ids, one for each position of the state.
        state: as `Session.state` gives it.
    """

    tokens: Sequence[int]
    state: Mapping[str, NDArray[Any]]


def fingerprint(model: Decoder, adapters: Iterable[tuple[Path, float]] = ()) -> str:
    """What tells a model from others: its sizes, names and types of weights, some of their bytes.

    Args:
        adapters: files or folders of the adapters in use, whose bytes count in full, and their
            scales.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(model.sizes).encode())
    for name, weight in sorted(model.weights.items()):
        digest.update(f"{name} {weight.dtype.name} {weight.shape}".encode())
        raw = np.ascontiguousarray(weight.data).reshape(-1).view(np.uint8)
        last = max(len(raw) - _BLOCK_BYTES, 0)
        for k in range(_BLOCKS):
            start = last * k // (_BLOCKS - 1)
            digest.update(raw[start : start + _BLOCK_BYTES].data)
    for path, scale in adapters:
        digest.update(f"{scale!r}".encode())
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def save_prompt_cache(path: str | PathLike[str], cache: PromptCache, owner: str) -> None:
    """Write a cache, whole or not at all.

    Args:
        owner: fingerprint of the model.
    Raises:
        OSError: the system cannot write.
    """
    metadata: dict[str, Any] = {
        "general.type": _TYPE,
        f"{_PREFIX}owner": owner,
        f"{_PREFIX}tokens": np.array(cache.tokens, np.int32),
    }
    tensors = {}
    for name, array in cache.state.items():
        metadata[f"{_PREFIX}{name}.dtype"] = array.dtype.str
        tensors[name] = np.ascontiguousarray(array).view(np.int8)
    write_gguf(path, metadata, tensors)


def load_prompt_cache(path: str | PathLike[str], owner: str) -> PromptCache:
    """Read a cache that `save_prompt_cache` wrote.

    Args:
        owner: fingerprint of the model it is wanted for.
    Raises:
        FileFormatError: another kind of file, or a damaged one.
        SettingError: the cache belongs to another model.
        OSError: the system cannot read.
    """
    with GgufFile(path, mmap=False) as file:
        if expect(file.metadata, "general.type", str, "model") != _TYPE:
            raise FileFormatError(
                f"{path}: no prompt cache: got another GGUF file, want one that --prompt-cache "
                "wrote. Pass another path."
            )
        if expect(file.metadata, f"{_PREFIX}owner", str) != owner:
            raise SettingError(
                f"{path}: the prompt cache belongs to another model: got that of other weights or "
                "adapters, want this model's. Pass another path, or remove the file."
            )
        tokens = expect_integers(file.metadata, f"{_PREFIX}tokens")
        try:
            state = {
                name: np.array(info.data).view(expect(file.metadata, f"{_PREFIX}{name}.dtype", str))
                for name, info in file.tensors.items()
            }
        except (TypeError, ValueError) as e:
            raise _damaged(path, f"arrays of no such type ({e})") from None
    is_right = {*state} == {"keys", "values"}
    if not is_right or any(a.ndim < 2 or a.shape[1] != len(tokens) for a in state.values()):
        shapes = {name: array.shape for name, array in state.items()}
        raise _damaged(path, f"{len(tokens)} tokens and arrays {shapes}")
    return PromptCache(tokens, state)


def _damaged(path: str | PathLike[str], got: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: the prompt cache is damaged: got {got}, want keys and values of one position "
        "per token. Remove the file."
    )
