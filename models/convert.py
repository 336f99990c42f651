"""Model files of other formats as GGUF: what is in them is recognised, renamed and written."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from yupana.graphlib.errors import SettingError
from yupana.models.conversion import Conversion
from yupana.models.convert_ggla import convert_ggla
from yupana.models.convert_ggml import convert_ggml
from yupana.models.convert_hub import convert_hub
from yupana.models.convert_llama2c import convert_llama2c
from yupana.models.file_types import BLOCKS_VERSION, file_type_of
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.formats.ggla import read_ggla
from yupana.models.formats.ggml_container import read_ggml
from yupana.models.formats.gguf_types import MAGIC, TENSOR_TYPE_BY_NAME
from yupana.models.formats.hub_folder import read_hub_folder
from yupana.models.formats.identify import identify
from yupana.models.formats.llama2c import read_llama2c, read_llama2c_words
from yupana.models.formats.stored import Array, StoredTensor
from yupana.models.targets import refuse_source
from yupana.models.tensor_values import dtype_named, encode_rows, parts_of
from yupana.models.vocabulary_hub import hub_entries
from yupana.models.vocabulary_words import spm_entries

Dtype = Literal["auto", "f32", "f16", "bf16", "q8_0"]
_ALWAYS_F32 = ("_norm.weight", "position_embd.weight", "rope_freqs.weight")


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    dtype: Dtype = "auto",
    vocabulary: str | PathLike[str] | None = None,
) -> Conversion:
    """Write a model or adapter of another format as GGUF, whole or not at all.

    Args:
        source: a file of ggml's starcoder or gpt-2 program, a model of llama2.c, an adapter of
            llama.cpp's former finetune (ggla), or a folder of Hugging Face's with a Llama.
        target: GGUF file to write or replace; none of those read.
        dtype: of the matrices; "auto" keeps the type they have, as far as GGUF has it. Vectors,
            norms and embeddings of positions are f32 always, as llama.cpp wants them.
        vocabulary: where to take the vocabulary from: a GGUF file, a `tokenizer.bin` of llama2.c,
            or a folder with `tokenizer.json`. Only llama2.c's models come without.

    Returns:
        What was written, with notes for the user.

    Raises:
        SettingError: another dtype, a source that is GGUF already, a vocabulary of another size,
            or a target that is read.
        FileFormatError: the source is damaged, or of a kind that cannot be converted.
        OSError: the system cannot read or write.
    """
    if dtype not in get_args(Dtype):
        raise SettingError(
            f"convert: dtype: got {dtype!r}, want one of {', '.join(get_args(Dtype))}."
        )
    read = [Path(source)]
    if vocabulary is not None and Path(vocabulary).suffix != ".gguf":  # else it is in the new file
        read.append(Path(vocabulary))
    refuse_source("convert", read, target)
    conversion = read_conversion(Path(source))
    if vocabulary is not None:
        entries = _vocabulary(Path(vocabulary), conversion)
        kept = {k: v for k, v in conversion.metadata.items() if not k.startswith("tokenizer.")}
        conversion = replace(conversion, metadata=kept | entries, notes=[])
    types = {name: _target_type(t, dtype) for name, t in conversion.tensors.items()}
    path = Path(source).resolve()
    name = path.name if path.is_dir() else path.stem
    metadata = {"general.name": name, **_file_type(conversion, types)}
    metadata |= conversion.metadata
    tensors = {
        name: (types[name], t.shape, partial(_encoded, t, types[name]))
        for name, t in conversion.tensors.items()
    }
    write_gguf(target, metadata, tensors)
    return replace(conversion, metadata=metadata)


def read_conversion(source: Path) -> Conversion:
    """What a file of another format would be as GGUF; see `convert`.

    Raises:
        SettingError: nothing of these formats is there. FileFormatError: it is damaged.
    """
    kind = identify(source)
    if kind == "hub":
        return convert_hub(read_hub_folder(source))
    if kind == "ggml":
        return convert_ggml(read_ggml(source))
    if kind == "ggla":
        return convert_ggla(read_ggla(source))
    if kind == "llama2c":
        conversion = convert_llama2c(read_llama2c(source))
        note = "llama2.c keeps the vocabulary in a file of its own: pass it with --vocab."
        metadata = conversion.metadata | {"tokenizer.ggml.model": "none"}
        return replace(conversion, metadata=metadata, notes=[note])
    remedy = "`yupana quantize` changes types." if kind == "gguf" else "Give the model's folder."
    raise SettingError(
        f"{source}: nothing to convert: got {kind}, want a ggml, ggla or llama2.c file or a folder "
        f"of Hugging Face's. {remedy}"
    )


def _vocabulary(path: Path, conversion: Conversion) -> dict[str, Any]:
    """The `tokenizer.*` entries of another file, of as many tokens as the model has."""
    n_vocab = conversion.tensors["token_embd.weight"].shape[0]
    if path.is_dir():
        return hub_entries(path, n_vocab)[0]
    with path.open("rb") as start:  # a tokenizer.bin has no magic
        is_gguf = start.read(len(MAGIC)) == MAGIC
    if is_gguf:
        with GgufFile(path) as file:
            typed = file.metadata.typed()
        entries = {k: v for k, v in typed.items() if k.startswith("tokenizer.")}
    else:
        entries = spm_entries(*read_llama2c_words(path))
    count = len(entries.get("tokenizer.ggml.tokens", ()))
    if count != n_vocab:
        raise SettingError(
            f"{path}: a vocabulary of another model: got {count} tokens, want {n_vocab}, one per "
            "row of the model's embedding."
        )
    return entries


def _target_type(tensor: StoredTensor, dtype: Dtype) -> str:
    if len(tensor.shape) < 2 or tensor.name.endswith(_ALWAYS_F32):
        return "F32"
    wanted = dtype.upper()
    if dtype == "auto":
        wanted = tensor.type if dtype_named(tensor.type) and tensor.type != "F64" else "F32"
    return "F16" if tensor.shape[-1] % TENSOR_TYPE_BY_NAME[wanted].block else wanted


def _file_type(conversion: Conversion, types: dict[str, str]) -> dict[str, int]:
    """The entries on types; the file's is that of most of its matrices' elements."""
    counts: Counter[str] = Counter()
    for name, tensor in conversion.tensors.items():
        counts[types[name]] += tensor.size if len(tensor.shape) > 1 else 0
    main = counts.most_common(1)[0][0]
    entries = {"general.file_type": file_type_of(main)}
    if any(TENSOR_TYPE_BY_NAME[t].block > 1 for t in types.values()):
        entries["general.quantization_version"] = BLOCKS_VERSION
    return entries


def _encoded(tensor: StoredTensor, type_name: str) -> Iterator[Array]:
    """The bytes of a tensor to be written, some rows at a time."""
    for stored, values in parts_of(tensor):
        yield stored if tensor.type == type_name else encode_rows(values, type_name)
