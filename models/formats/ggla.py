"""LoRA adapters as llama.cpp's finetune wrote them until 2024 (magic 'ggla')."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from yupana.models.formats.gguf_cursor import Cursor, shown
from yupana.models.formats.mapping import map_file
from yupana.models.formats.stored import StoredTensor, read_records

GGLA_MAGIC = 0x67676C61
VERSION = 1
ALIGNMENT = 32  # of tensor data, from the start of the file
_SUFFIXES = (".loraA", ".loraB")


@dataclass(frozen=True, slots=True, eq=False)
class GglaFile:
    """What a file holds.

    A weight W (outputs, inputs) becomes W + alpha / rank · B · Aᵀ with A (inputs, r), B (outputs,
    r); r is `rank` for most tensors, 1 for norms.

    Attributes:
        rank, alpha: of the whole adapter.
        tensors: name ("blk.0.attn_q.weight.loraA") to tensor, F32 or F16.
    """

    path: Path
    rank: int
    alpha: int
    tensors: dict[str, StoredTensor]


def read_ggla(path: str | PathLike[str]) -> GglaFile:
    """Open an adapter; tensors stay in the map.

    Raises:
        FileFormatError: the bytes are no such file; names the field and its offset.
        OSError: the system cannot open it.
    """
    path = Path(path)
    cursor = Cursor(path, map_file(path, "a ggla file"), "<", "I")
    for name, want in (("magic", GGLA_MAGIC), ("version", VERSION)):
        at = cursor.position
        got = cursor.number("u4", name)
        if got != want:
            raise cursor.error(name, f"{got:#x}", f"{want:#x}", at)
    at = cursor.position
    rank, alpha = cursor.number("u4", "rank"), cursor.number("u4", "alpha")
    if not rank:
        raise cursor.error("rank", rank, "at least 1", at)
    tensors = read_records(cursor, ALIGNMENT)
    for tensor in tensors.values():
        what = f"tensor {shown(tensor.name)}"
        if not tensor.name.endswith(_SUFFIXES):
            raise cursor.error(f"name of {what}", shown(tensor.name), " or ".join(_SUFFIXES))
        if len(tensor.shape) != 2 or tensor.type not in ("F32", "F16"):
            got_text = f"{tensor.type} {tensor.shape}"
            raise cursor.error(what, got_text, "F32 or F16 of two axes")
    return GglaFile(path, rank, alpha, tensors)
