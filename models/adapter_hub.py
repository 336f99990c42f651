"""Adapters of programs that work on Hugging Face's models: names of weights and the order of rows.

Heads of Llama in transformers rotate element i with element i + K/2 where ggml rotates 2i with
2i + 1: rows of B of queries and keys change their order. Those of Qwen do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.convert_hub import LAYER_NAMES
from yupana.models.decoder import Sizes
from yupana.models.formats.safetensors_file import read_safetensors
from yupana.models.formats.stored import StoredTensor
from yupana.models.hub_rows import in_neighbours
from yupana.models.lora import EMBEDDING, Adapter, Floats
from yupana.models.tensor_values import parts_of

CONFIG = "adapter_config.json"
_MODULES = {"token_embd": "model.embed_tokens", "output": "lm_head"}


def read_parts(path: Path, names: re.Pattern[str], skipped: str) -> dict[str, dict[str, Floats]]:
    """Module to its parts, each by what `names` has as group 2; group 1 is the module.

    Args:
        path: a file of safetensors.
        skipped: the end of names that are left out.
    Raises:
        FileFormatError: a tensor of another name, or a damaged file.
        OSError: the system cannot read.
    """
    found: dict[str, dict[str, Floats]] = {}
    for name, tensor in read_safetensors(path).tensors.items():
        if name.endswith(skipped):
            continue
        parts = names.fullmatch(name)
        if parts is None:
            raise FileFormatError(
                f"{path}: got tensor {name!r}, want pairs of A and B. Whole modules "
                "(modules_to_save) and biases cannot be taken over: merge the adapter."
            )
        found.setdefault(parts[1], {})[parts[2]] = _values(tensor)
    return found


def adapter_of(
    name: str,
    path: Path,
    architecture: str,
    pairs: Mapping[str, tuple[Floats, Floats]],
    scales: Mapping[str, float],
    magnitudes: Mapping[str, Floats],
) -> Adapter:
    """An adapter of pairs with a scale each; B takes scales up where no alpha says them all.

    Raises:
        FileFormatError: pairs, or lengths, that do not fit each other.
    """
    alphas = {scales[weight] * len(a) for weight, (a, _) in pairs.items()}
    alpha = alphas.pop() if len(alphas) == 1 else None
    if alpha is None:
        pairs = {w: (a, b * np.float32(scales[w])) for w, (a, b) in pairs.items()}
    try:
        return Adapter(name, pairs, alpha, architecture, magnitudes)
    except SettingError as e:
        raise FileFormatError(f"{path}: {e}") from None


def module_of(weight: str) -> str:
    """The hub's name of a weight that may have a pair.

    Raises:
        SettingError: the weight is no matrix.

    >>> module_of("blk.2.attn_q.weight")
    'model.layers.2.self_attn.q_proj'
    """
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


def weight_of(path: Path, module: str) -> str:
    """The weight that a module of the hub is.

    Raises:
        FileFormatError: it is none of a Llama.
    """
    for ours, theirs in _MODULES.items():
        if module == theirs:
            return f"{ours}.weight"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if found is None or found[2] not in LAYER_NAMES:
        raise FileFormatError(f"{path}: got module {module!r}, want those of a Llama.")
    return f"blk.{int(found[1])}.{LAYER_NAMES[found[2]]}.weight"


def pair_of(
    path: Path, module: str, parts: Mapping[str, Floats], names: tuple[str, str], sizes: Sizes
) -> tuple[Floats, Floats]:
    """A and B of a module from their parts, which are as PEFT has them, with ggml's order of rows.

    Raises:
        FileFormatError: one of the two is not there.
    """
    missing = [name for name in names if name not in parts]
    if missing:
        raise FileFormatError(f"{path}: {module}: got {[*parts]}, want {missing[0]} as well.")
    first, second = (parts[name] for name in names)
    weight = weight_of(path, module)
    if weight == EMBEDDING:
        return np.ascontiguousarray(second.T), np.ascontiguousarray(first.T)
    return first, in_neighbours(second, weight, sizes)


def _values(tensor: StoredTensor) -> Floats:
    return np.concatenate([values for _, values in parts_of(tensor)]).reshape(tensor.shape)
