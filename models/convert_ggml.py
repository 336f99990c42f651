"""Files of ggml's gpt-2 and starcoder programs as GGUF of the architecture "starcoder"."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.conversion import Conversion, changed
from yupana.models.formats.ggml_container import GgmlFile
from yupana.models.formats.stored import Array, StoredTensor
from yupana.models.starcoder import StarCoderConfig, weight_shapes
from yupana.models.starcoder_gguf import starcoder_metadata
from yupana.models.vocabulary_words import bpe_entries

_EPSILON = 1e-5  # of the layer norms, in the programs' code
_TOP = {"model/wte": "token_embd.weight", "model/wpe": "position_embd.weight"}
_LAYER = {
    "ln_1": "attn_norm",
    "attn/c_attn": "attn_qkv",
    "attn/c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp/c_fc": "ffn_up",
    "mlp/c_proj": "ffn_down",
}
_PARTS = {"g": "weight", "w": "weight", "b": "bias"}


def convert_ggml(file: GgmlFile) -> Conversion:
    """The model in GGUF's names.

    The programs' converter repeats StarCoder's one head of keys and values for every query head;
    where all repetitions are the same bytes, one is kept. An output matrix that is the embedding's
    is left out, as in files that llama.cpp's converter writes.

    Raises:
        FileFormatError: tensors are missing, unknown, or of shapes that the sizes do not give.
    """
    c = file.sizes
    tensors = {new: replace(file.tensors[old], name=new) for old, new in _names(file).items()}
    output = tensors.get("output.weight")
    if output is not None and _are_equal(output, tensors["token_embd.weight"]):
        del tensors["output.weight"]
    config = _config(file, tensors, n_head_kv=c["n_head"])
    _check_shapes(file, config, tensors)
    qkv = [name for name in tensors if ".attn_qkv." in name]
    if all(_has_one_head(tensors[name].load(), c["n_embd"], c["n_head"]) for name in qkv):
        config = _config(file, tensors, n_head_kv=1)
        for name in qkv:
            tensors[name] = _with_one_head(tensors[name], c["n_embd"], c["n_head"])
    metadata = starcoder_metadata(config) | bpe_entries(file.words, "starcoder")
    return Conversion(metadata, tensors)


def _config(file: GgmlFile, tensors: Mapping[str, StoredTensor], n_head_kv: int) -> StarCoderConfig:
    try:
        return StarCoderConfig(
            **file.sizes,
            n_head_kv=n_head_kv,
            n_ff=tensors["blk.0.ffn_up.weight"].shape[0],
            norm_eps=_EPSILON,
            tied="output.weight" not in tensors,
        )
    except SettingError as e:
        raise FileFormatError(f"{file.path}: the sizes do not fit: {e}") from None


def _names(file: GgmlFile) -> dict[str, str]:
    """Old names to new ones; every tensor of the file is among them, and all that are needed."""
    names = dict(_TOP)
    n_layer = file.sizes["n_layer"]
    if n_layer > len(file.tensors):  # a number that lies must not make a list of that length
        raise _wrong(file.path, "n_layer", n_layer, f"at most {len(file.tensors)}, the tensors")
    for i in range(n_layer):
        for old, new in _LAYER.items():
            weight = "g" if "ln" in old else "w"
            for part in (weight, "b"):
                names[f"model/h{i}/{old}/{part}"] = f"blk.{i}.{new}.{_PARTS[part]}"
    names |= {f"model/ln_f/{part}": f"output_norm.{_PARTS[part]}" for part in "gb"}
    if "model/lm_head" in file.tensors:
        names["model/lm_head"] = "output.weight"
    missing, unknown = names.keys() - file.tensors.keys(), file.tensors.keys() - names.keys()
    if missing or unknown:
        what = f"no {min(missing)!r}" if missing else f"{min(unknown)!r}"
        raise _wrong(file.path, "tensors", what, f"those of a gpt-2 of {n_layer} layers")
    return names


def _check_shapes(
    file: GgmlFile, config: StarCoderConfig, tensors: Mapping[str, StoredTensor]
) -> None:
    for name, shape in weight_shapes(config).items():
        if tensors[name].shape != shape:
            raise _wrong(file.path, f"shape of {name!r}", tensors[name].shape, f"{shape}")


def _heads(rows: Array, n_embd: int, n_head: int) -> Array:
    """(2, H, K, …): keys and values of a fused matrix or bias, whatever its type."""
    return rows[n_embd:].reshape(2, n_head, n_embd // n_head, *rows.shape[1:])


def _has_one_head(rows: Array, n_embd: int, n_head: int) -> bool:
    heads = _heads(rows, n_embd, n_head)
    return all(np.array_equal(heads[:, 0], heads[:, h]) for h in range(1, n_head))


def _with_one_head(tensor: StoredTensor, n_embd: int, n_head: int) -> StoredTensor:
    kept = n_embd + 2 * (n_embd // n_head)

    def keep(rows: Array) -> Array:
        one = _heads(rows, n_embd, n_head)[:, 0].reshape(kept - n_embd, *rows.shape[1:])
        return np.concatenate([rows[:n_embd], one])

    return changed(tensor, keep, (kept, *tensor.shape[1:]))


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    return one.type == other.type and np.array_equal(one.load(), other.load())


def _wrong(path: Path, what: str, got: object, want: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: {what}: got {got}, want {want}. The file is of another model, or damaged."
    )
