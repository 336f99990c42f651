"""Model files: GGUF today; every reader treats the bytes it gets as hostile."""

from yupana.models.formats.gguf import GgufFile, Progress, TensorInfo, write_gguf
from yupana.models.formats.gguf_expect import expect, expect_integers, expect_size, place_of
from yupana.models.formats.gguf_metadata import Metadata, MissingEntry
from yupana.models.formats.gguf_writer import atomic_write, temporary_of, temporary_path

__all__ = [
    "GgufFile",
    "Metadata",
    "MissingEntry",
    "Progress",
    "TensorInfo",
    "atomic_write",
    "expect",
    "expect_integers",
    "expect_size",
    "place_of",
    "temporary_of",
    "temporary_path",
    "write_gguf",
]
