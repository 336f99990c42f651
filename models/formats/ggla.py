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
_LARGEST = 1 << 16  # rank or alpha; those in use are below a thousand


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
    rank, alpha = cursor.number("i4", "rank"), cursor.number("i4", "alpha")
    if not 1 <= rank <= _LARGEST:
        raise cursor.error("rank", rank, f"1 to {_LARGEST}", at)
    if not 0 <= alpha <= _LARGEST:
        raise cursor.error("alpha", alpha, f"0 to {_LARGEST}", at + 4)
    tensors = read_records(cursor, ALIGNMENT, _check)
    widest = max((max(tensor.shape) for tensor in tensors.values()), default=rank)
    if rank > widest:  # every pair is scaled by it
        raise cursor.error("rank", rank, f"at most {widest}, the longest axis of the tensors", at)
    return GglaFile(path, rank, alpha, tensors)


def _check(cursor: Cursor, tensor: StoredTensor, at: int) -> None:
    """Raise unless a tensor, whose record starts at byte `at`, is half of a pair."""
    what = f"tensor {shown(tensor.name)}"
    if not tensor.name.endswith(_SUFFIXES):
        raise cursor.error(f"name of {what}", shown(tensor.name), " or ".join(_SUFFIXES), at)
    if len(tensor.shape) != 2 or tensor.type not in ("F32", "F16"):
        raise cursor.error(what, f"{tensor.type} {tensor.shape}", "F32 or F16 of two axes", at)
