"""Adapters as folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.adapter_hub import (
    CONFIG,
    adapter_of,
    module_of,
    pair_of,
    read_parts,
    weight_of,
)
from yupana.models.decoder import Sizes
from yupana.models.formats.gguf_writer import atomic_write, temporary_path
from yupana.models.formats.hub_folder import read_json
from yupana.models.hub_rows import in_halves, in_neighbours
from yupana.models.llama import FAMILIES
from yupana.models.lora import EMBEDDING, Adapter

TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_COPY = ".base_layer.weight"  # of the model's own embedding, which PEFT saves along
_NAMES = ("lora_A", "lora_B")
_EMBEDDING_NAMES = ("lora_embedding_A", "lora_embedding_B")
_LENGTHS = "lora_magnitude_vector"
_PARTS = re.compile(
    r"(?:base_model\.model\.)?(.+)\."
    rf"({'|'.join((*_NAMES, *_EMBEDDING_NAMES, _LENGTHS))})(?:\.weight)?"
)


def save_peft(path: str | PathLike[str], adapter: Adapter, sizes: Sizes, base: str = "") -> None:
    """Write a folder that `PeftModel.from_pretrained` loads onto the Hugging Face model.

    Args:
        path: folder, made if it is not there.
        sizes: of the model the adapter is for.
        base: name or folder of that model, for `base_model_name_or_path`.
    Raises:
        SettingError: pairs beside norms, which PEFT does not have, lengths of rows together with
            a pair beside the embedding, or another architecture.
        OSError: the system cannot write.

    >>> import pathlib, tempfile
    >>> from yupana.models.llama import LlamaConfig
    >>> sizes = LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2)
    >>> pair = np.ones((2, 8), "f4"), np.ones((8, 2), "f4")
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> save_peft(folder, Adapter("a", {"blk.0.attn_q.weight": pair}), sizes)
    >>> sorted(path.name for path in folder.iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    >>> load_peft(folder, sizes).rank_of("blk.0.attn_q.weight")
    2
    """
    if adapter.architecture not in FAMILIES:
        raise SettingError(
            f"save_peft: got an adapter for {adapter.architecture!r}, want one for "
            f"{' or '.join(map(repr, FAMILIES))}."
        )
    if adapter.magnitudes and EMBEDDING in adapter.pairs:
        raise SettingError(
            f"save_peft: got lengths of rows (DoRA) and a pair beside {EMBEDDING}, want no such "
            "pair: PEFT would scale the columns of that weight. Merge the adapter instead."
        )
    tensors, ranks, alphas = {}, {}, {}
    for weight, (a, b) in adapter.pairs.items():
        module = module_of(weight)
        ranks[module] = adapter.rank_of(weight)
        alphas[module] = adapter.scale_of(weight) * ranks[module]
        key = _PREFIX + module
        if weight == EMBEDDING:
            tensors[f"{key}.lora_embedding_A"] = np.ascontiguousarray(b.T)
            tensors[f"{key}.lora_embedding_B"] = np.ascontiguousarray(a.T)
            continue
        tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{key}.lora_B.weight"] = in_halves(b, weight, sizes)
        if weight in adapter.magnitudes:
            lengths = in_halves(adapter.magnitudes[weight], weight, sizes)
            tensors[f"{key}.{_LENGTHS}"] = lengths
    config = _config(ranks, alphas, bool(adapter.magnitudes), base)
    with _folder(Path(path)) as folder:
        with atomic_write(folder / TENSORS) as file:
            file.write(save(tensors, {"format": "pt"}))
        with atomic_write(folder / CONFIG) as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder to write to that is `path`, or becomes it when all is in it."""
    if path.is_dir():
        yield path
        return
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _config(
    ranks: Mapping[str, int], alphas: Mapping[str, float], is_dora: bool, base: str
) -> dict[str, Any]:
    """What PEFT wants to know; modules of another rank or alpha than most are listed."""
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": is_dora,
        "target_modules": sorted(ranks),
        "modules_to_save": None,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): a for m, a in alphas.items() if a != alpha},
    }


def load_peft(path: str | PathLike[str], sizes: Sizes) -> Adapter:
    """The adapter in a folder; its name is the path.

    Args:
        sizes: of the model it is for, which decide the order of rows.
    Raises:
        FileFormatError: no PEFT LoRA of a Llama, or a part this library does not have.
        OSError: the system cannot read.
    """
    folder = Path(path)
    config = read_json(folder / CONFIG)
    _check_config(folder / CONFIG, config)
    file = folder / TENSORS
    pairs, scales, magnitudes = {}, {}, {}
    for module, parts in read_parts(file, _PARTS, _COPY).items():
        weight = weight_of(file, module)
        is_embedding = weight == EMBEDDING
        names = _EMBEDDING_NAMES if is_embedding else _NAMES
        pairs[weight] = pair_of(file, module, parts, names, sizes)
        scales[weight] = _scale(config, module, len(pairs[weight][0]))
        if _LENGTHS in parts:
            if is_embedding:
                raise FileFormatError(
                    f"{file}: {module}: got lengths of columns (DoRA of an embedding), want them "
                    "of rows. Merge the adapter with PEFT, and convert the model."
                )
            magnitudes[weight] = in_neighbours(parts[_LENGTHS], weight, sizes)
    return adapter_of(str(path), file, sizes.architecture, pairs, scales, magnitudes)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    wanted = {"peft_type": ("LORA",), "bias": ("none", None), "fan_in_fan_out": (False, None)}
    for key, values in wanted.items():
        if config.get(key) not in values:
            raise FileFormatError(f"{path}: {key}: got {config.get(key)!r}, want {values[0]!r}.")
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise FileFormatError(f"{path}: {key}: got {value!r}, want a number above 0.")


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B · A of a module is multiplied with, by PEFT's rules."""
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
