"""Values of metadata as the types they must have, with errors that say where they stand."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_metadata import Metadata, MissingEntry

_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int, np.integer),
    float: (float, int, np.floating, np.integer),
    str: (str,),
    list: (list, tuple, np.ndarray),
}


def expect(metadata: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of `key` as `kind`, so that a wrong type in a file is an error where it is read.

    Args:
        metadata: of a file, or a plain mapping as `write_gguf` takes it.
        key: full key.
        kind: bool, int, float, str or list (of any array).
        default: what a missing key gives; None: a missing key is an error.

    Raises:
        MissingEntry: there is no such key and no default.
        FileFormatError: the value is of another kind.

    >>> expect({"llama.block_count": 4}, "llama.block_count", int)
    4
    >>> expect({}, "llama.rope.freq_base", float, 10000.0)
    10000.0
    """
    if key not in metadata:
        if default is not None:
            return default
        if isinstance(metadata, Metadata):
            return metadata[key]  # the error names the file
        raise MissingEntry(
            f"metadata: no {shown(key)}: got {len(metadata)} other keys, want it among them. "
            "The file may be of another kind than expected."
        )
    value: Any = metadata[key]
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind is not bool):
        got = f"{type(value).__name__} {shown(value)}"
        raise _wrong_type(metadata, key, got, kind.__name__)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return kind(value)


def expect_integers(metadata: Mapping[str, Any], key: str) -> list[int]:
    """The value of `key`, an array of whole numbers.

    Raises:
        MissingEntry: there is no such key.
        FileFormatError: the value is no array, or one of something else.

    >>> expect_integers({"a.ids": np.int32([3, 1])}, "a.ids")
    [3, 1]
    """
    values: list[Any] = expect(metadata, key, list)
    for value in values:
        if type(value) is not int:
            got = f"an array with {shown(value)}"
            raise _wrong_type(metadata, key, got, "whole numbers")
    return values


def expect_size(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The value of `key`, a whole number of at least 1.

    Raises:
        MissingEntry: there is no such key and no default.
        FileFormatError: the value is of another kind, or less.

    >>> expect_size({"llama.block_count": 4}, "llama.block_count")
    4
    """
    value: int = expect(metadata, key, int, default)
    if value < 1 and key in metadata:
        raise FileFormatError(f"{place_of(metadata, key)}: got {value}, want at least 1.")
    return value


def place_of(metadata: Mapping[str, Any], key: str) -> str:
    """Where the value of `key` stands, for errors about it."""
    if isinstance(metadata, Metadata):
        return metadata.place(key)
    return f"metadata: value of {shown(key)}"


def _wrong_type(metadata: Mapping[str, Any], key: str, got: str, want: str) -> FileFormatError:
    """The error for a value of another kind than it must have."""
    return FileFormatError(
        f"{place_of(metadata, key)} has the wrong type: got {got}, want {want}. The file was "
        "written by a faulty program."
    )
