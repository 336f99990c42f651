"""The files of llama2.c: a model (`.bin`, versions 0 to 2) and its `tokenizer.bin`.

Version 0 starts with seven sizes, a negative number of tokens where the output has a matrix of
its own; versions 1 and 2 with the magic "ak42" in a header of 256 bytes. Weights follow without
names: all layers' matrices of one kind together. Version 2 stores matrices as int8 with a float32
scale for each group of elements.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from yupana.models.formats.gguf_cursor import Cursor
from yupana.models.formats.mapping import map_file
from yupana.models.formats.stored import Array, StoredTensor, tensor_at

LLAMA2C_MAGIC = 0x616B3432
_HEADER_BYTES = 256
_SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_MAX_LAYERS = 1 << 16  # a header must not make a list of names that long


@dataclass(frozen=True, slots=True, eq=False)
class Llama2cFile:
    """What a file holds.

    Attributes:
        version: 0, 1 or 2.
        sizes: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len.
        group: elements per scale in version 2, else 0.
        tensors: name ("layers.0.attention.wq") to tensor, in the order of the file; "output"
            only where it is not the matrix of the embedding.
    """

    path: Path
    version: int
    sizes: dict[str, int]
    group: int
    tensors: dict[str, StoredTensor]


def read_llama2c(path: str | PathLike[str]) -> Llama2cFile:
    """Open a model of llama2.c; tensors stay in the map.

    Raises:
        FileFormatError: the bytes are no such file; names the field and its offset.
        OSError: the system cannot open it.
    """
    path = Path(path)
    cursor = Cursor(path, map_file(path, "a model of llama2.c"), "<", "I")
    version = 0
    if cursor.number("u4", "first number") == LLAMA2C_MAGIC:
        version = cursor.number("i4", "version")
        if version not in (1, 2):
            raise cursor.error("version", version, "1 or 2", 4)
    else:
        cursor.position = 0
    sizes, tied = _read_sizes(cursor, version)
    group = _read_group(cursor) if version == 2 else 0
    if version:
        cursor.position = 0
        cursor.skip(_HEADER_BYTES, "header")
    tensors = {}
    for name, shape in _layout(sizes, tied, version):
        if name.startswith("freqs"):  # the table of rotations follows from the sizes
            cursor.skip(4 * math.prod(shape), name)
        elif group and len(shape) == 2:
            tensors[name] = _grouped(cursor, name, shape, group)
        else:
            offset = cursor.position
            cursor.skip(4 * math.prod(shape), f"tensor {name}")
            tensors[name] = tensor_at(cursor.data, name, shape, "F32", offset)
    if cursor.left:
        got = f"{cursor.left} bytes more"
        raise cursor.error(
            "end of the tensors",
            got,
            "the end of the file",
            remedy="The sizes in the header are not those of the weights.",
        )
    return Llama2cFile(path, version, sizes, group, tensors)


def _read_sizes(cursor: Cursor, version: int) -> tuple[dict[str, int], bool]:
    start = cursor.position
    sizes = {name: cursor.number("i4", name) for name in _SIZES}
    tied = sizes["vocab_size"] > 0
    if version:
        tied = cursor.number("u1", "flag of the shared output") != 0
    else:
        sizes["vocab_size"] = abs(sizes["vocab_size"])
    rules = {name: (sizes[name] >= 1, "at least 1") for name in _SIZES}
    if all(is_right for is_right, _ in rules.values()):
        heads, kv = sizes["n_heads"], sizes["n_kv_heads"]
        rules["n_layers"] = (sizes["n_layers"] <= _MAX_LAYERS, f"at most {_MAX_LAYERS}")
        rules["n_heads"] = (sizes["dim"] % (2 * heads) == 0, f"2 n_heads divide {sizes['dim']}")
        rules["n_kv_heads"] = (heads % kv == 0, f"a divisor of n_heads {heads}")
    for k, (name, (is_right, rule)) in enumerate(rules.items()):
        if not is_right:
            raise cursor.error(
                name, sizes[name], rule, start + 4 * k, "This is no model of llama2.c."
            )
    return sizes, tied


def _read_group(cursor: Cursor) -> int:
    at = cursor.position
    group: int = cursor.number("i4", "group size")
    if group < 1:
        raise cursor.error("group size", group, "at least 1", at)
    return group


def _layout(
    sizes: dict[str, int], tied: bool, version: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file; names as llama2.c's model has them."""
    dim, hidden, vocab = sizes["dim"], sizes["hidden_dim"], sizes["vocab_size"]
    head = dim // sizes["n_heads"]
    kv_dim = head * sizes["n_kv_heads"]
    attention = {"wq": (dim, dim), "wk": (kv_dim, dim), "wv": (kv_dim, dim), "wo": (dim, dim)}
    forward = {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}
    queries = {f"attention.{name}": shape for name, shape in attention.items()}
    gates = {f"feed_forward.{name}": shape for name, shape in forward.items()}

    def layers(kinds: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, shape in kinds.items():
            yield from ((f"layers.{i}.{name}", shape) for i in range(sizes["n_layers"]))

    if version == 0:
        yield "tok_embeddings", (vocab, dim)
        yield from layers({"attention_norm": (dim,), **queries, "ffn_norm": (dim,), **gates})
        yield "norm", (dim,)
        yield from ((name, (sizes["seq_len"], head // 2)) for name in ("freqs_cos", "freqs_sin"))
    else:
        yield from layers({"attention_norm": (dim,), "ffn_norm": (dim,)})
        yield "norm", (dim,)
        yield "tok_embeddings", (vocab, dim)
        yield from layers({**queries, **gates})
    if not tied:
        yield "output", (vocab, dim)


def _grouped(cursor: Cursor, name: str, shape: tuple[int, ...], group: int) -> StoredTensor:
    """A matrix of version 2: int8 elements, then a float32 scale per group of `group`."""
    size, start = math.prod(shape), cursor.position
    if size % group:
        raise cursor.error(f"tensor {name}", f"{size} elements", f"groups of {group}")
    cursor.skip(size + 4 * (size // group), f"tensor {name}")
    data = cursor.data

    def load() -> Array:
        levels = np.ndarray((size // group, group), "i1", data, start)
        scales = np.ndarray((size // group, 1), "<f4", data, start + size)
        with np.errstate(all="ignore"):  # scales may be damaged; C multiplies in silence
            values: Array = (levels * scales).astype(np.float32, copy=False).reshape(shape)
        return values

    return StoredTensor(name, shape, f"I8 by {group}", cursor.position - start, load)


def read_llama2c_words(path: str | PathLike[str]) -> tuple[list[bytes], list[float]]:
    """The tokens of a `tokenizer.bin` as bytes, and their scores.

    The file is: the length of the longest token, then for each a float32 score, its length and
    its bytes; there is no count.

    Raises:
        FileFormatError: the bytes are no such file; names the field and its offset.
        OSError: the system cannot open it.
    """
    path = Path(path)
    cursor = Cursor(path, map_file(path, "a tokenizer.bin"), "<", "I")
    longest = cursor.number("u4", "length of the longest token")
    words: list[bytes] = []
    scores: list[float] = []
    while cursor.left:
        what = f"token {len(words)}"
        at = cursor.position
        score = cursor.number("f4", f"score of {what}")
        if not math.isfinite(score):
            raise cursor.error(f"score of {what}", score, "a finite number", at)
        at = cursor.position
        size = cursor.count(f"length of {what}", 1)
        if size > longest:
            raise cursor.error(
                f"length of {what}",
                size,
                f"at most {longest}, by the first field",
                at,
                "This is no tokenizer.bin of llama2.c.",
            )
        words.append(bytes(cursor.data[cursor.position : cursor.position + size]))
        scores.append(score)
        cursor.position += size
    return words, scores
