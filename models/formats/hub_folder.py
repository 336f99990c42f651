"""Folders as Hugging Face's hub has them: `config.json` and weights in safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.safetensors_file import read_safetensors
from yupana.models.formats.stored import StoredTensor

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, eq=False)
class HubFolder:
    """What a folder holds.

    Attributes:
        config: `config.json`.
        tensors: name ("model.layers.0.self_attn.q_proj.weight") to tensor, over all parts.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_hub_folder(path: str | PathLike[str]) -> HubFolder:
    """Open a folder; tensors stay in the maps.

    Raises:
        FileFormatError: a file is missing or damaged, or parts do not fit their index.
        OSError: the system cannot open a file.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    if (path / _WHOLE).is_file():
        return HubFolder(path, config, read_safetensors(path / _WHOLE).tensors)
    if not (path / _INDEX).is_file():
        raise FileFormatError(
            f"{path}: the folder has no weights: got neither {_WHOLE} nor {_INDEX}, want one. "
            "Weights in the older pytorch_model.bin must be saved as safetensors first."
        )
    return HubFolder(path, config, _read_parts(path, read_json(path / _INDEX)))


def _read_parts(path: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise FileFormatError(
            f"{path / _INDEX}: 'weight_map': got {shown(places)}, want file names by tensor."
        )
    parts = {}
    for part in sorted(set(places.values())):
        if Path(part).name != part:  # a name from the file must not lead elsewhere
            raise FileFormatError(
                f"{path / _INDEX}: 'weight_map': got the file {shown(part)}, want files of the "
                "folder itself."
            )
        parts[part] = read_safetensors(path / part).tensors
    tensors = {}
    for name, part in places.items():
        if name not in parts[part]:
            raise FileFormatError(
                f"{path / part}: no tensor {shown(name)}: got {len(parts[part])} others, want it "
                "among them by the index. Fetch the part again."
            )
        tensors[name] = parts[part][name]
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileFormatError: the file holds no JSON object.
        OSError: the system cannot read it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise FileFormatError(
            f"{path}: not JSON: got {e}, want a JSON object. Fetch the file again."
        ) from None
    if not isinstance(value, dict):
        raise FileFormatError(
            f"{path}: not a JSON object: got {type(value).__name__}, want one. Fetch it again."
        )
    return value
