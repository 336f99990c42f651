"""Adapters as MLX saves them: `adapter_config.json` and `adapters.safetensors`.

A is (inputs, r), B (r, outputs), both the other way round than PEFT's; names are Hugging Face's.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.adapter_hub import (
    CONFIG,
    adapter_of,
    pair_of,
    read_parts,
    weight_of,
)
from yupana.models.decoder import Sizes
from yupana.models.formats.hub_folder import read_json
from yupana.models.hub_rows import in_neighbours
from yupana.models.lora import EMBEDDING, Adapter

TENSORS = "adapters.safetensors"
_NAMES = ("lora_a", "lora_b")
_LENGTHS = "m"
_PARTS = re.compile(rf"(.+)\.({'|'.join((*_NAMES, _LENGTHS))})")
_COPY = ".linear.weight"  # of the model, which some versions save along with row lengths


def load_mlx(path: str | PathLike[str], sizes: Sizes) -> Adapter:
    """The adapter in a folder; its name is the path.

    Args:
        sizes: of the model it is for, which decide the order of rows.
    Raises:
        FileFormatError: no LoRA of a Llama, or a part this library does not have.
        OSError: the system cannot read.
    """
    folder = Path(path)
    scale = _scale(folder / CONFIG, read_json(folder / CONFIG))
    file = folder / TENSORS
    pairs, scales, magnitudes = {}, {}, {}
    for module, parts in read_parts(file, _PARTS, _COPY).items():
        weight = weight_of(file, module)
        turned = {name: np.ascontiguousarray(values.T) for name, values in parts.items()}
        # Rows of an embedding are picked: its A (V, r) is what PEFT's is (r, V) of.
        pairs[weight] = pair_of(file, module, turned, _NAMES, sizes)
        scales[weight] = scale
        if _LENGTHS in parts:
            if weight == EMBEDDING:
                raise FileFormatError(
                    f"{file}: {module}: got row lengths (DoRA) of an embedding, want pairs only."
                )
            magnitudes[weight] = in_neighbours(parts[_LENGTHS], weight, sizes)
    return adapter_of(str(path), file, sizes.architecture, pairs, scales, magnitudes)


def _scale(path: Path, config: dict[str, Any]) -> float:
    """What B · A is multiplied with."""
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise FileFormatError(
            f"{path}: fine_tune_type: got {kind!r}, want 'lora' or 'dora'. Fuse the model instead."
        )
    said = config.get("lora_parameters")
    scale = said.get("scale") if isinstance(said, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise FileFormatError(
            f"{path}: scale in lora_parameters: got {scale!r}, want a number above 0."
        )
    return float(scale)
