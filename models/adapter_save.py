"""Writing adapters: as GGUF for llama.cpp, as ggla for its former programs, as PEFT folders."""

from __future__ import annotations

import struct
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from yupana.graphlib.errors import SettingError
from yupana.models.adapter_peft import save_peft
from yupana.models.decoder import Sizes
from yupana.models.formats import write_gguf
from yupana.models.formats.ggla import ALIGNMENT, GGLA_MAGIC, VERSION
from yupana.models.formats.gguf_writer import atomic_write
from yupana.models.lora import EMBEDDING, Adapter, Floats

Form = Literal["gguf", "ggla", "peft"]


def form_named(path: Path) -> Form:
    """What an adapter is written as under a name: `.bin` is ggla, no ending a folder of PEFT.

    >>> [form_named(Path(name)) for name in ("a.gguf", "a.bin", "a")]
    ['gguf', 'ggla', 'peft']
    """
    if path.is_dir() or not path.suffix:
        return "peft"
    return "ggla" if path.suffix == ".bin" else "gguf"


def save_as_named(path: Path, adapter: Adapter, sizes: Sizes | None, base: str = "") -> None:
    """Write an adapter in the form that `form_named` says.

    Args:
        sizes, base: see `save_peft`; other forms need neither.
    Raises:
        SettingError: the form has no place for what the adapter holds, or `sizes` is missing.
        OSError: the system cannot write.
    """
    form = form_named(path)
    if form == "ggla":
        save_ggla(path, adapter)
    elif form == "gguf":
        save_adapter(path, adapter)
    elif sizes is None:
        raise SettingError(f"{path}: got no sizes of the model, want them for a folder of PEFT.")
    else:
        save_peft(path, adapter, sizes, base)


def save_adapter(path: str | PathLike[str], adapter: Adapter) -> None:
    """Write a GGUF adapter that llama.cpp loads, whole or not at all.

    Raises:
        SettingError: row lengths were trained (DoRA), for which GGUF has no place.
        OSError: the system cannot write.

    >>> import pathlib, tempfile
    >>> from yupana.models.adapter_files import load_adapter
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.gguf"
    >>> pair = np.ones((2, 3), "f4"), np.ones((4, 2), "f4")
    >>> save_adapter(path, Adapter("a", {"blk.0.attn_q.weight": pair}, alpha=4.0))
    >>> load_adapter(path).scale_of("blk.0.attn_q.weight")
    2.0
    """
    write_gguf(path, *gguf_adapter(adapter))


def gguf_adapter(adapter: Adapter) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Entries and tensors of an adapter in GGUF.

    Raises:
        SettingError: see `save_adapter`.
    """
    _refuse_magnitudes(adapter, "GGUF adapter")
    metadata = {
        "general.type": "adapter",
        "general.architecture": adapter.architecture,
        "general.name": adapter.name,
        "general.file_type": 0,
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(adapter.alpha or 0.0),  # 0: B A as it is
    }
    tensors = {}
    for name, (a, b) in adapter.pairs.items():
        # Of the embedding, whose rows are picked, a file's A is (V, R) and its B (D, R).
        first, second = (b, a.T) if name == EMBEDDING else (a, b)
        tensors[f"{name}.lora_a"] = np.ascontiguousarray(first)
        tensors[f"{name}.lora_b"] = np.ascontiguousarray(second)
    return metadata, tensors


def save_ggla(path: str | PathLike[str], adapter: Adapter) -> None:
    """Write an adapter as ggml's finetune did, whole or not at all.

    The format has one whole number each for rank and alpha: what pairs of other ranks, or alpha's
    fraction, need beyond them goes into B.

    Raises:
        SettingError: row lengths were trained (DoRA), or the model is no Llama: for neither has
            ggla a place.
        OSError: the system cannot write.

    >>> import pathlib, tempfile
    >>> from yupana.models.adapter_files import load_adapter
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.bin"
    >>> pair = np.ones((2, 3), "f4"), np.ones((4, 2), "f4")
    >>> save_ggla(path, Adapter("a", {"blk.0.attn_q.weight": pair}, alpha=4.0))
    >>> load_adapter(path).rank_of("blk.0.attn_q.weight")
    2
    """
    _refuse_magnitudes(adapter, "ggla file")
    if adapter.architecture != "llama":
        raise SettingError(
            f"save_ggla: got an adapter for {adapter.architecture!r}, want 'llama': ggla has no "
            "place for another name. Write a GGUF file."
        )
    rank = max(adapter.rank_of(name) for name in adapter.pairs)
    alpha = max(1, round(adapter.alpha or rank))
    with atomic_write(path) as file:
        file.write(struct.pack("<4I", GGLA_MAGIC, VERSION, rank, alpha))
        for name, (a, b) in adapter.pairs.items():
            factor = np.float32(adapter.scale_of(name) * rank / alpha)
            for part, values in (("A", a.T), ("B", b * factor)):
                file.write(_record(f"{name}.lora{part}", values, file.tell()))


def _record(name: str, values: Floats, position: int) -> bytes:
    """Axes, length of the name, type 0 (F32), sizes from the last axis on, name, data."""
    raw = name.encode()
    sizes = reversed(values.shape)
    head = struct.pack(f"<3I{values.ndim}I", values.ndim, len(raw), 0, *sizes) + raw
    gap = -(position + len(head)) % ALIGNMENT
    return head + bytes(gap) + values.astype("<f4").tobytes()


def _refuse_magnitudes(adapter: Adapter, what: str) -> None:
    if adapter.magnitudes:
        raise SettingError(
            f"adapter {adapter.name!r}: got trained row lengths (DoRA), which a {what} has no "
            "place for. Write a PEFT folder, or merge it with `yupana export-lora`."
        )
