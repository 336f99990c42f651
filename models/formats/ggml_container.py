"""The container of ggml's gpt-2 and starcoder programs, from before GGUF (magic 0x67676d6c).

Six sizes, the vocabulary as raw bytes, then tensors one after the other, unaligned. The same
magic was used by programs with other sizes in the header; the number of tokens, which stands
there twice, tells them apart.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from yupana.models.formats.gguf_cursor import Cursor
from yupana.models.formats.gguf_types import TENSOR_TYPE_BY_NAME
from yupana.models.formats.mapping import map_file
from yupana.models.formats.stored import StoredTensor, read_records

GGML_MAGIC = 0x67676D6C
_SIZES = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
_VERSION_FACTOR = 1000  # the file type is 1000 times the version of the blocks, plus the type
_BLOCKS_VERSION = 2  # the blocks of today


@dataclass(frozen=True, slots=True, eq=False)
class GgmlFile:
    """What a file holds.

    Attributes:
        sizes: n_vocab, n_ctx, n_embd, n_head, n_layer.
        file_type: of most tensors: 0 f32, 1 f16, 2 Q4_0, 3 Q4_1, 7 Q8_0, 8 Q5_0, 9 Q5_1, ….
        words: the bytes of each token.
        tensors: name ("model/h0/attn/c_attn/w") to tensor.
    """

    path: Path
    sizes: dict[str, int]
    file_type: int
    words: list[bytes]
    tensors: dict[str, StoredTensor]


def read_ggml(path: str | PathLike[str]) -> GgmlFile:
    """Open a file of ggml's gpt-2 or starcoder program; tensors stay in the map.

    Raises:
        FileFormatError: the bytes are no such file; names the field and its offset.
        OSError: the system cannot open it.
    """
    path = Path(path)
    cursor = Cursor(path, map_file(path, "a ggml file"), "<", "I")
    magic = cursor.number("u4", "magic")
    if magic != GGML_MAGIC:
        raise cursor.error("magic", f"{magic:#010x}", f"{GGML_MAGIC:#010x}", 0)
    sizes = {}
    for name in _SIZES:
        at = cursor.position
        sizes[name] = cursor.number("i4", name)
        if sizes[name] < 1:
            raise cursor.error(name, sizes[name], "at least 1", at)
    at = cursor.position
    file_type = cursor.number("u4", "file type")
    words = _read_words(cursor, sizes["n_vocab"])
    tensors = read_records(cursor)
    version = file_type // _VERSION_FACTOR
    if version != _BLOCKS_VERSION:
        for tensor in tensors.values():
            if TENSOR_TYPE_BY_NAME[tensor.type].block > 1:
                raise cursor.error(
                    f"file type (tensor {tensor.name!r} is {tensor.type})",
                    f"{file_type}, version {version} of the blocks",
                    f"version {_BLOCKS_VERSION}",
                    at,
                    "Blocks were laid out otherwise then; quantise the unquantised file again.",
                )
    return GgmlFile(path, sizes, file_type % _VERSION_FACTOR, words, tensors)


def _read_words(cursor: Cursor, n_vocab: int) -> list[bytes]:
    at = cursor.position
    count = cursor.number("u4", "number of tokens")
    if count != n_vocab:
        raise cursor.error(
            "number of tokens",
            count,
            f"n_vocab {n_vocab} once more",
            at,
            "The file may be of another of ggml's programs than gpt-2 and starcoder.",
        )
    if count * 4 > cursor.left:
        raise cursor.error("number of tokens", count, f"at most {cursor.left // 4}", at)
    words = []
    for k in range(count):
        size = cursor.count(f"length of token {k}", 1)
        words.append(bytes(cursor.data[cursor.position : cursor.position + size]))
        cursor.position += size
    return words
