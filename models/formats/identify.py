"""What kind of model file a path leads to, by its first bytes."""

import stat
import struct
from os import PathLike
from pathlib import Path
from typing import Literal

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.ggla import GGLA_MAGIC
from yupana.models.formats.ggml_container import GGML_MAGIC
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_types import MAGIC
from yupana.models.formats.llama2c import LLAMA2C_MAGIC

Kind = Literal["gguf", "ggml", "ggla", "llama2c", "safetensors", "hub", "peft", "mlx"]
_MAGICS: dict[int, Kind] = {
    int.from_bytes(MAGIC, "little"): "gguf",
    GGML_MAGIC: "ggml",
    GGLA_MAGIC: "ggla",
    LLAMA2C_MAGIC: "llama2c",
}
# What tells a folder; that of an adapter may have the model's config.json along.
_FOLDERS: dict[str, Kind] = {
    "adapter_model.safetensors": "peft",
    "adapters.safetensors": "mlx",
    "config.json": "hub",
}
_HEAD = 28  # bytes of the sizes with which a file of llama2.c's version 0 starts
_LARGEST = 1 << 24  # no size of a model is beyond


def identify(path: str | PathLike[str]) -> Kind:
    """The kind of a model file or folder.

    Raises:
        FileFormatError: it is of none of the kinds.
        OSError: the system cannot read it.

    >>> import pathlib, tempfile
    >>> from yupana.models.formats import write_gguf
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m"
    >>> write_gguf(path, {}, {})
    >>> identify(path)
    'gguf'
    """
    path = Path(path)
    if path.is_dir():
        for name, kind in _FOLDERS.items():
            if (path / name).is_file():
                return kind
        raise FileFormatError(
            f"{path}: not a model's folder: got no config.json in it, want one, and weights in "
            "safetensors; or an adapter's files."
        )
    if not stat.S_ISREG(path.stat().st_mode):  # before opening: a pipe would wait for its writer
        raise FileFormatError(f"{path}: not a model file: got a device, want a file or a folder.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    magic = _MAGICS.get(int.from_bytes(head[:4], "little"))
    if magic is not None:
        return magic
    if head[8:9] == b"{":
        return "safetensors"
    if len(head) == _HEAD and _are_sizes(struct.unpack("<7i", head)):
        return "llama2c"
    raise FileFormatError(
        f"{path}: magic at byte 0: got {shown(head[:8])}, want that of GGUF, ggml, ggla, "
        "safetensors or llama2.c. This is not a model file."
    )


def _are_sizes(numbers: tuple[int, ...]) -> bool:
    """Whether they can be the header of a model of llama2.c, which has no magic."""
    dim, _, _, n_heads, n_kv_heads, n_vocab, _ = numbers
    rest = (*numbers[:5], abs(n_vocab), numbers[6])
    return all(0 < n < _LARGEST for n in rest) and dim % n_heads == 0 and n_heads >= n_kv_heads
