"""Adapters as folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Names are those of Llama in Hugging Face's transformers, whose heads rotate element i with element
i + K/2 where ggml rotates 2i with 2i + 1: rows of B of queries and keys change their order.
"""

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
from yupana.models.convert_hub import LAYER_NAMES
from yupana.models.decoder import Sizes
from yupana.models.formats.gguf_writer import atomic_write, temporary_path
from yupana.models.formats.hub_folder import read_json
from yupana.models.formats.safetensors_file import read_safetensors
from yupana.models.formats.stored import StoredTensor
from yupana.models.lora import EMBEDDING, Adapter, Floats
from yupana.models.tensor_values import parts_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MODULES = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_COPY = ".base_layer.weight"  # of the model's own embedding, which PEFT saves along
_PARTS = re.compile(
    r"(?:base_model\.model\.)?(.+)\."
    r"(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.weight)?"
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
    if adapter.architecture != "llama":
        raise SettingError(f"save_peft: got an adapter for {adapter.architecture!r}, want 'llama'.")
    if adapter.magnitudes and EMBEDDING in adapter.pairs:
        raise SettingError(
            f"save_peft: got lengths of rows (DoRA) and a pair beside {EMBEDDING}, want no such "
            "pair: PEFT would scale the columns of that weight. Merge the adapter instead."
        )
    tensors, ranks, alphas = {}, {}, {}
    for weight, (a, b) in adapter.pairs.items():
        module = _module(weight)
        ranks[module] = adapter.rank_of(weight)
        alphas[module] = adapter.scale_of(weight) * ranks[module]
        key = _PREFIX + module
        if weight == EMBEDDING:
            tensors[f"{key}.lora_embedding_A"] = np.ascontiguousarray(b.T)
            tensors[f"{key}.lora_embedding_B"] = np.ascontiguousarray(a.T)
            continue
        tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{key}.lora_B.weight"] = _halves(b, weight, sizes)
        if weight in adapter.magnitudes:
            lengths = _halves(adapter.magnitudes[weight], weight, sizes)
            tensors[f"{key}.lora_magnitude_vector"] = lengths
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
    found: dict[str, dict[str, Floats]] = {}
    for name, tensor in read_safetensors(folder / TENSORS).tensors.items():
        if name.endswith(_COPY):
            continue
        parts = _PARTS.fullmatch(name)
        if parts is None:
            raise FileFormatError(
                f"{folder / TENSORS}: got tensor {name!r}, want pairs lora_A, lora_B. Whole "
                "modules (modules_to_save) and biases cannot be taken over: merge the adapter."
            )
        kind = parts[2].removesuffix(".weight")
        found.setdefault(parts[1], {})[kind] = _values(tensor)
    pairs, magnitudes = {}, {}
    for module, values in found.items():
        weight = _weight(folder / TENSORS, module)
        a, b = _pair(folder / TENSORS, module, values, weight, sizes)
        pairs[weight] = a, b * np.float32(_scale(config, module, len(a)))
        if "lora_magnitude_vector" in values:
            if weight == EMBEDDING:
                raise FileFormatError(
                    f"{folder / TENSORS}: {module}: got lengths of columns (DoRA of an embedding), "
                    "want them of rows. Merge the adapter with PEFT, and convert the model."
                )
            magnitudes[weight] = _neighbours(values["lora_magnitude_vector"], weight, sizes)
    try:
        return Adapter(str(path), pairs, magnitudes=magnitudes)
    except SettingError as e:
        raise FileFormatError(f"{folder / TENSORS}: {e}") from None


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


def _pair(
    path: Path, module: str, values: Mapping[str, Floats], weight: str, sizes: Sizes
) -> tuple[Floats, Floats]:
    names = (
        ("lora_embedding_A", "lora_embedding_B") if weight == EMBEDDING else ("lora_A", "lora_B")
    )
    missing = [name for name in names if name not in values]
    if missing:
        raise FileFormatError(f"{path}: {module}: got {[*values]}, want {missing[0]} as well.")
    first, second = (values[name] for name in names)
    if weight == EMBEDDING:
        return np.ascontiguousarray(second.T), np.ascontiguousarray(first.T)
    return first, _neighbours(second, weight, sizes)


def _module(weight: str) -> str:
    name = weight.removesuffix(".weight")
    if name in _MODULES:
        return _MODULES[name]
    block, _, part = name.removeprefix("blk.").partition(".")
    modules = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
    if "norm" in name or part not in modules:
        raise SettingError(
            f"save_peft: got a pair beside {weight}, want matrices: PEFT has no pairs of norms. "
            "Write a GGUF, or merge the adapter with `yupana export-lora`."
        )
    return f"model.layers.{block}.{modules[part]}"


def _weight(path: Path, module: str) -> str:
    for ours, theirs in _MODULES.items():
        if module == theirs:
            return f"{ours}.weight"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if found is None or found[2] not in LAYER_NAMES:
        raise FileFormatError(f"{path}: got module {module!r}, want those of a Llama.")
    return f"blk.{int(found[1])}.{LAYER_NAMES[found[2]]}.weight"


def _heads(weight: str, sizes: Sizes) -> int:
    """Heads whose rows are rotated; 0: none."""
    return {"attn_q": sizes.n_head, "attn_k": sizes.n_head_kv}.get(weight.split(".")[-2], 0)


def _halves(rows: Floats, weight: str, sizes: Sizes) -> Floats:
    """Rows in the order of Hugging Face."""
    if not (heads := _heads(weight, sizes)):
        return np.ascontiguousarray(rows)
    pairs = rows.reshape(heads, sizes.head_width // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _neighbours(rows: Floats, weight: str, sizes: Sizes) -> Floats:
    """Rows in the order of ggml."""
    heads = _heads(weight, sizes)
    if not heads or len(rows) != heads * sizes.head_width:  # the wrong shape is told of later
        return rows
    halves = rows.reshape(heads, 2, sizes.head_width // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _values(tensor: StoredTensor) -> Floats:
    return np.concatenate([values for _, values in parts_of(tensor)]).reshape(tensor.shape)
