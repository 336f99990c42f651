"""LoRA adapters read: GGUF as llama.cpp takes it, ggla of its former finetune, PEFT, MLX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.adapter_mlx import TENSORS as MLX_TENSORS
from yupana.models.adapter_mlx import load_mlx
from yupana.models.adapter_peft import load_peft
from yupana.models.convert_ggla import convert_ggla
from yupana.models.decoder import Sizes
from yupana.models.formats import GgufFile, expect
from yupana.models.formats.ggla import GGLA_MAGIC, read_ggla
from yupana.models.formats.gguf_cursor import shown
from yupana.models.lora import EMBEDDING, Adapter, Floats
from yupana.models.tensor_values import parts_of

_A, _B = ".lora_a", ".lora_b"


def load_adapter(path: str | PathLike[str], sizes: Sizes | None = None) -> Adapter:
    """The adapter in a file, or in a folder of PEFT or MLX; its name is the path.

    Whole norms, which some GGUF adapters hold beside the pairs, are left out with a warning;
    llama.cpp leaves them out, too.

    Args:
        sizes: of the model it is for, which a folder is read by.
    Raises:
        FileFormatError: the file holds no pairs, or a tensor that belongs to no adapter.
        SettingError: a folder without `sizes`.
        OSError: the system cannot read.
    """
    path = Path(path)
    if path.is_dir():
        if sizes is None:
            raise SettingError(f"load_adapter: {path}: got a folder, want `sizes` with it.")
        return load_mlx(path, sizes) if (path / MLX_TENSORS).is_file() else load_peft(path, sizes)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == GGLA_MAGIC.to_bytes(4, "little"):
        conversion = convert_ggla(read_ggla(path))
        tensors = conversion.tensors

        def load(name: str) -> Floats:
            tensor = tensors[name]
            return np.concatenate([values for _, values in parts_of(tensor)]).reshape(tensor.shape)

        return _adapter(path, conversion.metadata, [*tensors], load)
    with GgufFile(path) as gguf:
        context = Context()
        return _adapter(
            path,
            gguf.metadata,
            [*gguf.tensors],
            lambda name: gguf.tensor(context, name).numpy().astype(np.float32),
        )


def _adapter(
    path: Path, metadata: Mapping[str, Any], names: list[str], load: Callable[[str], Floats]
) -> Adapter:
    for key, want in (("general.type", "adapter"), ("adapter.type", "lora")):
        got = expect(metadata, key, str, "nothing")
        if got != want:
            hint = " Checkpoints are no adapters." if "training.type" in metadata else ""
            raise FileFormatError(f"{path}: {key}: got {got!r}, want {want!r}.{hint}")
    pairs: dict[str, tuple[Floats, Floats]] = {}
    whole = []
    for name in names:
        weight, dot, part = name.rpartition(".")
        if dot + part == _A:
            if weight + _B not in names:
                raise FileFormatError(f"{path}: got {shown(name)} alone, want its {_B} as well.")
            a, b = load(weight + _A), load(weight + _B)
            # Of the embedding, whose rows are picked, a file's A is (V, R) and its B (D, R).
            pairs[weight] = (np.ascontiguousarray(b.T), a) if weight == EMBEDDING else (a, b)
        elif dot + part == _B and weight + _A not in names:
            raise FileFormatError(f"{path}: got {shown(name)} alone, want its {_A} as well.")
        elif name.endswith("_norm.weight"):
            whole.append(name)
        elif dot + part != _B:
            raise FileFormatError(
                f"{path}: got tensor {shown(name)}, want names that end in {_A} or {_B}."
            )
    if not pairs:
        raise FileFormatError(f"{path}: got no pairs, want tensors that end in {_A} and {_B}.")
    if whole:
        more = f" and {len(whole) - 4} more" if len(whole) > 4 else ""
        warnings.warn(
            f"{path}: whole norms are left out, as by llama.cpp: got {', '.join(whole[:4])}{more}, "
            "want pairs. The program that trained them can merge them into its model.",
            stacklevel=3,
        )
    alpha = expect(metadata, "adapter.lora.alpha", float, 0.0)
    architecture = expect(metadata, "general.architecture", str)
    try:
        return Adapter(str(path), pairs, alpha or None, architecture)
    except SettingError as e:
        raise FileFormatError(f"{path}: {e}") from None
