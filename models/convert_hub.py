"""Models of the families of Llama as Hugging Face's hub has them, as GGUF."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from yupana.graphlib.errors import FileFormatError
from yupana.models.conversion import Conversion, changed
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.hub_folder import HubFolder
from yupana.models.formats.stored import StoredTensor
from yupana.models.hub_config import HubConfig
from yupana.models.hub_rows import in_neighbours, reordered_heads
from yupana.models.llama import LlamaConfig, optional_shapes, weight_shapes
from yupana.models.llama_gguf import llama_metadata
from yupana.models.vocabulary_hub import hub_entries

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_SKIPPED = "rotary_emb.inv_freq"  # saved by old versions; it follows from the sizes
_FACTORS = "rope_freqs.weight"


def convert_hub(folder: HubFolder) -> Conversion:
    """The model in GGUF's names, rows of queries and keys in ggml's rotary order.

    Raises:
        FileFormatError: another architecture, a feature that llama.cpp's does not have, or tensors
            that are missing, unknown or of shapes that the sizes do not give.
    """
    config = HubConfig(folder.path / "config.json", folder.config)
    sizes = config.sizes
    if sizes.n_layer > len(folder.tensors):  # a number that lies must not make a long list
        raise FileFormatError(
            f"{folder.path}: num_hidden_layers: got {sizes.n_layer}, want at most the "
            f"{len(folder.tensors)} tensors there are. Is a part of the model missing?"
        )
    tensors = {}
    for old, tensor in folder.tensors.items():
        if not old.endswith(_SKIPPED):
            new = _new_name(folder.path, old)
            tensors[new] = replace(tensor, name=new)
    if sizes.tied:
        tensors.pop("output.weight", None)
    _check(folder.path, sizes, tensors)
    tensors = {name: _in_order(tensors[name], sizes) for name in _sorted(sizes, tensors)}
    factors = config.frequency_factors
    if factors is not None:
        data = factors
        tensors[_FACTORS] = StoredTensor(_FACTORS, data.shape, "F32", data.nbytes, lambda: data)
    vocabulary, notes = hub_entries(folder.path, sizes.n_vocab)
    return Conversion(llama_metadata(sizes) | vocabulary, tensors, notes)


def _new_name(path: Path, old: str) -> str:
    if old in _TOP:
        return _TOP[old]
    module, _, part = old.removeprefix("model.layers.").rpartition(".")
    number, _, kind = module.partition(".")
    is_layer = old.startswith("model.layers.") and number.isdecimal()
    if not is_layer or kind not in LAYER_NAMES or part not in ("weight", "bias"):
        raise FileFormatError(
            f"{path}: unknown tensor: got {shown(old)}, want those of a Llama or Qwen. Adapters "
            "and quantised weights must be merged or unpacked first."
        )
    return f"blk.{int(number)}.{LAYER_NAMES[kind]}.{part}"


def _sorted(sizes: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The names in the order of the forward pass, a bias behind its matrix."""
    place = {name.removesuffix(".weight"): k for k, name in enumerate(weight_shapes(sizes))}
    parts = ("weight", "bias")

    def key(name: str) -> tuple[int, int]:
        module, _, part = name.rpartition(".")
        return place[module], parts.index(part)

    return sorted(tensors, key=key)


def _in_order(tensor: StoredTensor, sizes: LlamaConfig) -> StoredTensor:
    """Rows of queries and keys as ggml wants them."""
    if not reordered_heads(tensor.name, sizes):
        return tensor
    return changed(tensor, lambda rows: in_neighbours(rows, tensor.name, sizes))


def _check(path: Path, sizes: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise unless all tensors are there with their shapes, and no others."""
    needed = weight_shapes(sizes)
    known = needed | optional_shapes(sizes)
    for name in needed.keys() - tensors.keys():
        raise FileFormatError(
            f"{path}: no tensor for {name}: got {len(tensors)} others, want it among them by "
            "config.json. Is a part of the model missing?"
        )
    for name, tensor in tensors.items():
        if tensor.shape != known.get(name):
            want = known.get(name, f"no such tensor in {sizes.n_layer} layers")
            raise FileFormatError(
                f"{path}: shape of {name}: got {tensor.shape}, want {want} by config.json."
            )
