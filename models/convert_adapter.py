"""Adapters turned from one form into another: GGUF, ggla, folders of PEFT; MLX is read only."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from os import fspath
from pathlib import Path

import numpy as np

from yupana.graphlib.errors import SettingError
from yupana.models.adapter_files import load_adapter
from yupana.models.adapter_hub import CONFIG
from yupana.models.adapter_save import form_named, gguf_adapter, save_as_named
from yupana.models.conversion import Conversion
from yupana.models.formats import GgufFile
from yupana.models.formats.hub_folder import read_json
from yupana.models.formats.identify import Kind, identify
from yupana.models.formats.stored import StoredTensor
from yupana.models.hub_config import HubConfig
from yupana.models.llama import LlamaConfig, weight_shapes
from yupana.models.llama_gguf import read_config
from yupana.models.lora import Adapter
from yupana.models.targets import refuse_source
from yupana.models.write_conversion import Dtype, write_conversion

_FOLDERS = ("peft", "mlx")


def adapter_kind(source: Path) -> Kind | None:
    """In what form a file or folder holds an adapter; None: it holds something else.

    Raises:
        FileFormatError: it is of none of the kinds there are.
        OSError: the system cannot read.
    """
    kind = identify(source)
    if kind == "gguf":
        with GgufFile(source) as file:
            return kind if file.metadata.get("general.type") == "adapter" else None
    return kind if kind in ("ggla", *_FOLDERS) else None


def convert_adapter(
    source: Path, kind: Kind, target: Path, dtype: Dtype, base: Path | None
) -> Conversion:
    """Write an adapter in the form that the name of `target` says; see `convert`.

    Raises:
        SettingError: it has that form already, the form has no place for what it holds, or the
            model it is for is not to be found.
        FileFormatError: it is damaged.
        OSError: the system cannot read or write.
    """
    form = form_named(target)
    if kind == form:
        raise SettingError(
            f"convert: {source}: got {kind} and the name {target}, want another form. A name that "
            "ends in .gguf is GGUF, one in .bin ggla, one without an ending a folder of PEFT."
        )
    if form != "gguf" and dtype != "auto":
        raise SettingError(f"convert: dtype: got {dtype!r} with {target}, want a GGUF adapter.")
    sizes = None
    if kind in _FOLDERS or form == "peft":
        base = base or _named_base(source, kind)
        refuse_source("convert", [source, base], target / CONFIG if form == "peft" else target)
        sizes = _sizes(base)
    adapter = load_adapter(source, sizes)
    if sizes is not None:
        adapter.check_shapes(weight_shapes(sizes))
    if form == "gguf":
        return write_conversion(_as_gguf(adapter), source, target, dtype)
    save_as_named(target, adapter, sizes, "" if base is None else fspath(base))
    return _as_gguf(replace(adapter, magnitudes={}))  # for which GGUF has no place


def _named_base(source: Path, kind: Kind) -> Path:
    """The model that a folder of PEFT says it is for, if it is there."""
    name = read_json(source / CONFIG).get("base_model_name_or_path") if kind == "peft" else None
    if isinstance(name, str) and name and Path(name).exists():
        return Path(name)
    raise SettingError(
        f"convert: model_base: got none for the adapter {source}, want the model it is for, GGUF "
        "or a folder of Hugging Face's. Pass --model-base: rows in folders have another order."
    )


def _sizes(base: Path) -> LlamaConfig:
    if identify(base) == "gguf":
        with GgufFile(base) as file:
            return read_config(file)
    config = base / "config.json"
    return HubConfig(config, read_json(config)).sizes


def _as_gguf(adapter: Adapter) -> Conversion:
    entries, arrays = gguf_adapter(adapter)
    kept = {k: v for k, v in entries.items() if k not in ("general.name", "general.file_type")}
    tensors = {
        name: StoredTensor(name, values.shape, "F32", values.nbytes, partial(np.asarray, values))
        for name, values in arrays.items()
    }
    return Conversion(kept, tensors)
