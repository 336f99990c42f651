"""What a model file holds, whatever its format: entries, tensors, and totals."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from yupana.models import adapter_mlx, adapter_peft
from yupana.models.adapter_hub import CONFIG
from yupana.models.formats import GgufFile
from yupana.models.formats.ggla import read_ggla
from yupana.models.formats.ggml_container import read_ggml
from yupana.models.formats.hub_folder import read_hub_folder, read_json
from yupana.models.formats.identify import identify
from yupana.models.formats.llama2c import read_llama2c
from yupana.models.formats.safetensors_file import read_safetensors
from yupana.models.formats.stored import StoredTensor

# Kind to what it is called, and its file of tensors.
_ADAPTERS = {
    "peft": ("PEFT folder", adapter_peft.TENSORS),
    "mlx": ("MLX adapter folder", adapter_mlx.TENSORS),
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A list in a file: what its elements are, how many, and the first of them."""

    kind: str
    length: int
    first: list[Any]


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor, as the file calls it; its shape in NumPy's order.

    Attributes:
        offset: of its first byte in the file, where the format says so.
        part: name of that file, of a model in several.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    offset: int | None = None
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file holds.

    Attributes:
        format: of the file, as "GGUF version 3, little-endian".
        holds: "model", "adapter", "checkpoint", "vocabulary", "prompt cache" or
            "tensors".
        entries: what is said beside the tensors; lists as `Listed`.
        tensors: in the file's order.
        entry_types: of GGUF's entries, as "UINT32" or "ARRAY[STRING]".
    """

    path: Path
    format: str
    holds: str
    entries: dict[str, Any]
    tensors: list[TensorSummary]
    entry_types: dict[str, str] = field(default_factory=dict)

    @property
    def n_elements(self) -> int:
        """Elements of all tensors."""
        return sum(int(np.prod(tensor.shape, dtype=object)) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def types(self) -> dict[str, int]:
        """Type to number of tensors, the most frequent first."""
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())


def inspect_file(path: str | PathLike[str], n_shown: int | None = 8) -> Summary:
    """Say what is in a file of GGUF, ggml, ggla, llama2.c or safetensors, or in a folder.

    Folders are those of Hugging Face's models, and of adapters of PEFT and MLX.

    Args:
        path: file or folder.
        n_shown: elements of a list that are given; None: all.

    Raises:
        FileFormatError: it is of none of these kinds, or damaged.
        OSError: the system cannot read it.

    >>> import tempfile
    >>> from yupana.models.formats import write_gguf
    >>> path = Path(tempfile.mkdtemp()) / "m.gguf"
    >>> write_gguf(path, {"general.name": "tiny"}, {"w": np.eye(2, dtype=np.float32)})
    >>> summary = inspect_file(path)
    >>> summary.format, summary.holds, summary.n_elements
    ('GGUF version 3, little-endian', 'tensors', 4)
    """
    path = Path(path)
    kind = identify(path)
    if kind == "gguf":
        return _gguf(path, n_shown)
    if kind == "ggml":
        old = read_ggml(path)
        words = Listed(
            "bytes", len(old.words), [w.decode("utf-8", "replace") for w in old.words[:n_shown]]
        )
        said = {**old.sizes, "file type": old.file_type, "tokens": words}
        return Summary(path, "ggml (gpt-2, starcoder)", "model", said, _tensors(old.tensors))
    if kind == "ggla":
        adapter = read_ggla(path)
        ranks: dict[str, Any] = {"rank": adapter.rank, "alpha": adapter.alpha}
        return Summary(path, "ggla version 1", "adapter", ranks, _tensors(adapter.tensors))
    if kind == "llama2c":
        model = read_llama2c(path)
        sizes: dict[str, Any] = dict(model.sizes)
        sizes |= {"group size": model.group} if model.group else {}
        name = f"llama2.c version {model.version}"
        return Summary(path, name, "model", sizes, _tensors(model.tensors))
    if kind == "hub":
        folder = read_hub_folder(path)
        config = {key: _entry(value, n_shown) for key, value in folder.config.items()}
        return Summary(path, "Hugging Face folder", "model", config, _tensors(folder.tensors))
    if kind in ("peft", "mlx"):
        return _adapter_folder(path, *_ADAPTERS[kind], n_shown)
    weights = read_safetensors(path)
    return Summary(
        path, "safetensors", "tensors", dict(weights.metadata), _tensors(weights.tensors)
    )


def _adapter_folder(path: Path, name: str, tensors: str, n_shown: int | None) -> Summary:
    said = {key: _entry(value, n_shown) for key, value in read_json(path / CONFIG).items()}
    return Summary(path, name, "adapter", said, _tensors(read_safetensors(path / tensors).tensors))


def _gguf(path: Path, n_shown: int | None) -> Summary:
    with GgufFile(path) as file:
        m = file.metadata
        entries: dict[str, Any] = {}
        for key in m:
            kind = m.type_name(key)
            if kind.startswith("ARRAY"):
                entries[key] = Listed(kind[6:-1].lower(), m.length(key), _first(m[key], n_shown))
            else:
                entries[key] = m[key]
        name = f"GGUF version {file.version}, {file.byte_order}-endian"
        tensors = [
            TensorSummary(
                t.name,
                t.shape,
                t.type,
                t.nbytes,
                t.offset,
                t.path.name if len(file.parts) > 1 else None,
            )
            for t in file.tensors.values()
        ]
        types = {key: m.type_name(key) for key in m}
        return Summary(path, name, _holds(entries, len(tensors)), entries, tensors, types)


def _holds(entries: Mapping[str, Any], n_tensors: int) -> str:
    if "training.type" in entries:
        return "checkpoint"
    if entries.get("general.type") in ("adapter", "prompt-cache"):
        return str(entries["general.type"]).replace("-", " ")
    if "general.architecture" not in entries:
        return "tensors"
    if not n_tensors and "tokenizer.ggml.tokens" in entries:
        return "vocabulary"
    return "model"


def _tensors(tensors: Mapping[str, StoredTensor]) -> list[TensorSummary]:
    return [TensorSummary(t.name, t.shape, t.type, t.nbytes) for t in tensors.values()]


def _entry(value: Any, n_shown: int | None) -> Any:
    """A value of JSON, with lists cut short."""
    if isinstance(value, list):
        kinds = sorted({type(v).__name__ for v in value})
        return Listed(" or ".join(kinds) or "nothing", len(value), value[:n_shown])
    return value


def _first(values: Any, n_shown: int | None) -> list[Any]:
    first = values[:n_shown]
    return list(first.tolist() if isinstance(first, np.ndarray) else first)
