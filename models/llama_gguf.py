"""Models of the families of LLaMA as GGUF files, with the keys of llama.cpp."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import Dtype, bf16, dtype_of, from_storage, to_storage
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.conversion import Described
from yupana.models.formats import (
    GgufFile,
    TensorInfo,
    expect,
    expect_integers,
    expect_size,
    place_of,
    write_gguf,
)
from yupana.models.formats.gguf_cursor import shown
from yupana.models.llama import FAMILIES, Llama, LlamaConfig, optional_shapes, weight_shapes
from yupana.models.vocabulary import Vocabulary
from yupana.models.vocabulary_gguf import read_vocabulary, vocabulary_metadata

_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}  # general.file_type: that of most tensors
_SCALINGS = ("linear", "yarn")
_READABLE = ("F32", "F16", "BF16", "F64")


def save_llama(
    path: str | PathLike[str],
    model: Llama,
    vocabulary: Vocabulary | Mapping[str, Any] | None = None,
    dtype: str = "f32",
    name: str = "yupana",
) -> None:
    """Write a model that llama.cpp opens, whole or not at all.

    Args:
        vocabulary: one made here, or the entries of that of another file, see `read_words`.
        dtype: of the matrices: f32, f16 or bf16. Norms stay f32, as llama.cpp wants them.
        name: shown by programs that open the file.
    Raises:
        SettingError: another dtype, or a vocabulary of another size than the model's.
        OSError: the system cannot write.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.gguf"
    >>> sizes = LlamaConfig(n_vocab=257, n_ctx=16, n_embd=8, n_layer=1, n_head=2)
    >>> save_llama(path, Llama(sizes).init(seed=1), Vocabulary.from_bytes(), dtype="f16")
    >>> model, vocabulary = load_llama(path)
    >>> model.config.n_embd, vocabulary.kind
    (8, 'bytes')
    """
    if dtype not in _FILE_TYPES:
        raise SettingError(f"save_llama: dtype: got {dtype!r}, want {', '.join(_FILE_TYPES)}.")
    n_vocab = model.config.n_vocab
    entries = vocabulary if isinstance(vocabulary, Mapping) else vocabulary_metadata(vocabulary)
    size = len(entries.get("tokenizer.ggml.tokens", range(n_vocab)))
    if size != n_vocab:
        raise SettingError(
            f"save_llama: the vocabulary is not the model's: got {size} tokens, want {n_vocab}."
        )
    metadata = {**llama_metadata(model.config), **entries}
    metadata |= {"general.name": name, "general.file_type": _FILE_TYPES[dtype]}
    kind = dtype_of(dtype)
    tensors = {key: _stored(array, kind) for key, array in model.arrays().items()}
    write_gguf(path, metadata, tensors)


def load_llama(
    path: str | PathLike[str], context: Context | None = None
) -> tuple[Llama, Vocabulary | None]:
    """Read a model and its vocabulary; the weights become f32 parameters.

    Raises:
        FileFormatError: no GGUF file, another architecture, or tensors that do not fit.
        OSError: the system cannot read.
    """
    with GgufFile(path) as file:
        config = read_config(file)
        vocabulary = read_vocabulary(file.metadata)
        if vocabulary is not None and len(vocabulary) != config.n_vocab:
            raise FileFormatError(
                f"{path}: vocabulary and embedding differ: got {len(vocabulary)} tokens, want "
                f"{config.n_vocab}, one per row of token_embd.weight."
            )
        shapes = weight_shapes(config)
        shapes |= {n: s for n, s in optional_shapes(config).items() if n in file.tensors}
        for name, shape in shapes.items():  # before the memory is taken
            _check_tensor(path, file.tensors[name], shape)
        context, weights = context or Context(), {}
        for name, shape in shapes.items():
            new = context.leaf if name == "rope_freqs.weight" else context.param
            weights[name] = new(shape, name=name).set(_values(file.tensors[name]))
    return Llama(config, context, weights), vocabulary


def llama_metadata(config: LlamaConfig) -> dict[str, Any]:
    """The architecture's entries, as llama.cpp reads them."""
    c, a = config, config.architecture
    entries = {
        "general.architecture": a,
        f"{a}.vocab_size": c.n_vocab,
        f"{a}.context_length": c.n_ctx,
        f"{a}.embedding_length": c.n_embd,
        f"{a}.block_count": c.n_layer,
        f"{a}.feed_forward_length": c.n_ff,
        f"{a}.attention.head_count": c.n_head,
        f"{a}.attention.head_count_kv": c.n_head_kv,
        f"{a}.attention.layer_norm_rms_epsilon": c.rms_eps,
        f"{a}.rope.dimension_count": c.n_rot,
        f"{a}.rope.freq_base": c.rope_base,
    }
    if c.rope_scale != 1 or c.yarn:
        entries[f"{a}.rope.scaling.type"] = "yarn" if c.yarn else "linear"
        entries[f"{a}.rope.scaling.factor"] = 1 / c.rope_scale
    usual = {
        "head_width": c.n_embd // c.n_head,
        "value_width": c.n_embd // c.n_head,
        "n_ctx_orig": c.n_ctx,
    }
    for key, field in _UNUSUAL.items():
        if getattr(c, field) != usual.get(field, getattr(LlamaConfig, field)):
            entries[f"{a}.{key}"] = getattr(c, field)
    return entries


# Entries that only unusual models need, and the fields they give. YaRN's other numbers, as
# "rope.scaling.yarn_beta_fast", llama.cpp leaves unread in files of this architecture.
_UNUSUAL = {
    "attention.key_length": "head_width",
    "attention.value_length": "value_width",
    "rope.scaling.original_context_length": "n_ctx_orig",
    "rope.scaling.attn_factor": "rope_magnitude",
}


def read_config(file: Described) -> LlamaConfig:
    """The sizes of the model in a file.

    Raises:
        FileFormatError: another architecture, or an entry missing, wrong, or out of range.
    """
    m = file.metadata
    a: str = expect(m, "general.architecture", str)
    if a not in FAMILIES:
        known = " or ".join(map(repr, FAMILIES))
        raise FileFormatError(f"{file.path}: architecture: got {a!r}, want {known}.")
    names = "expert_count", "attention.causal", "block_count"
    experts, causal, blocks = (f"{a}.{name}" for name in names)
    if count := expect(m, experts, int, 0):
        raise FileFormatError(f"{place_of(m, experts)}: got {count}, want none.")
    if not expect(m, causal, bool, True):
        raise FileFormatError(
            f"{place_of(m, causal)}: got False, want True. Models whose tokens see later ones make "
            "embeddings, no text."
        )
    n_head = _same(m, f"{a}.attention.head_count")
    n_layer = expect_size(m, blocks)
    if n_layer > len(file.tensors):  # a number that lies must not build a model of that size
        raise FileFormatError(
            f"{place_of(m, blocks)}: got {n_layer}, want at most the "
            f"{len(file.tensors)} tensors there are."
        )
    check_blocks(file, blocks, n_layer)
    try:
        return LlamaConfig(
            n_vocab=file.tensors["token_embd.weight"].shape[0],
            n_ctx=expect_size(m, f"{a}.context_length"),
            n_embd=expect_size(m, f"{a}.embedding_length"),
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=_same(m, f"{a}.attention.head_count_kv", n_head),
            n_ff=_same(m, f"{a}.feed_forward_length"),
            n_rot=expect_size(m, f"{a}.rope.dimension_count", 0),
            rms_eps=expect(m, f"{a}.attention.layer_norm_rms_epsilon", float),
            rope_base=expect(m, f"{a}.rope.freq_base", float, 10000.0),
            rope_scale=_rope_scale(m, a),
            tied="output.weight" not in file.tensors,
            architecture=a,
            **_unusual(m, a),
        )
    except SettingError as e:
        key = f"{a}.{_ENTRIES.get(e.setting)}"
        where = place_of(m, key) if key in m else file.path
        raise FileFormatError(f"{where}: the sizes do not fit: {e}") from None
    except (IndexError, OverflowError) as e:
        raise FileFormatError(f"{file.path}: the sizes do not fit: {e}") from None


# Fields of a config, and the entries that they come from.
_ENTRIES = {
    "n_ctx": "context_length",
    "n_head": "attention.head_count",
    "n_embd": "embedding_length",
    "n_head_kv": "attention.head_count_kv",
    "n_rot": "rope.dimension_count",
    "rms_eps": "attention.layer_norm_rms_epsilon",
    "rope_base": "rope.freq_base",
    "rope_scale": "rope.scaling.factor",
} | {field: key for key, field in _UNUSUAL.items()}


def _same(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size; some files give it for each layer, the same for all."""
    value = metadata.get(key, default)
    if not isinstance(value, list | tuple | np.ndarray):
        return expect_size(metadata, key, default)
    sizes = {*expect_integers(metadata, key)}
    if len(sizes) != 1 or min(sizes) < 1:
        want = "the same for all layers, at least 1"
        raise FileFormatError(f"{place_of(metadata, key)}: got {sorted(sizes)}, want {want}.")
    return sizes.pop()


def _unusual(metadata: Mapping[str, Any], a: str) -> dict[str, Any]:
    """Fields that a file seldom sets."""
    heads = _same(metadata, f"{a}.attention.head_count")
    fields: dict[str, Any] = {
        "value_width": expect_size(metadata, f"{a}.embedding_length") // heads
    }
    if expect(metadata, f"{a}.rope.scaling.type", str, "linear") == "yarn":
        fields["yarn"] = True
    for name, field in _UNUSUAL.items():
        key = f"{a}.{name}"
        if key not in metadata:
            continue
        if field in ("head_width", "value_width"):
            fields[field] = expect_size(metadata, key)
        else:
            fields[field] = expect(metadata, key, int if field == "n_ctx_orig" else float)
    return fields


def _rope_scale(metadata: Mapping[str, Any], a: str) -> float:
    """The factor of positions: the inverse of what files call the scaling factor."""
    kind = expect(metadata, f"{a}.rope.scaling.type", str, "linear")
    older: float = expect(metadata, f"{a}.rope.scale_linear", float, 1.0)
    factor: float = expect(metadata, f"{a}.rope.scaling.factor", float, older)
    if kind == "none" or (kind not in _SCALINGS and factor == 1):
        return 1.0
    if kind not in _SCALINGS or not factor > 0:
        want = "'linear' or 'yarn' by more than 0"
        raise SettingError(f"rope scaling: got {kind!r} by {factor}, want {want}.", "rope_scale")
    return 1.0 / factor


def _stored(array: np.ndarray[Any, Any], kind: Dtype) -> Any:
    if array.ndim == 1 or kind.name == "f32":
        return array.astype(np.float32, copy=False)
    stored = to_storage(array, kind)
    return ("BF16", array.shape, stored) if kind is bf16 else stored


def check_blocks(file: Described, key: str, n_layer: int) -> None:
    """Raise FileFormatError for a block beyond the last: the number of blocks is wrong."""
    for name in file.tensors:
        number = name.split(".")[1] if name.startswith("blk.") else ""
        if number.isdecimal() and int(number) >= n_layer:
            raise FileFormatError(
                f"{place_of(file.metadata, key)}: got {n_layer}, want at least {int(number) + 1}, "
                f"since there is a tensor {shown(name)}."
            )


def check_shape(info: TensorInfo, shape: tuple[int, ...]) -> None:
    """Raise FileFormatError unless a tensor is of the shape that the metadata give it."""
    if info.shape != shape:
        raise FileFormatError(
            f"{info.path}: shape of tensor {shown(info.name)} at byte {info.position}: got "
            f"{info.shape}, want {shape} by the metadata."
        )


def _check_tensor(path: str | PathLike[str], info: TensorInfo, shape: tuple[int, ...]) -> None:
    check_shape(info, shape)
    if info.type not in _READABLE:
        raise FileFormatError(
            f"{path}: type of {info.name}: got {info.type}, want one of {', '.join(_READABLE)}. "
            "Quantised models cannot be read yet."
        )


def _values(info: TensorInfo) -> np.ndarray[Any, Any]:
    data = info.data
    if info.type != "BF16":
        return data
    return from_storage(data.astype(np.uint16), bf16)  # in our byte order
