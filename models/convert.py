"""Files of other formats as GGUF: what is in them is recognised, renamed and written.

Adapters are written in other forms as well, see `convert_adapter`.
"""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from yupana.graphlib.errors import SettingError
from yupana.models.adapter_save import form_named
from yupana.models.conversion import Conversion
from yupana.models.convert_adapter import adapter_kind, convert_adapter
from yupana.models.convert_ggla import convert_ggla
from yupana.models.convert_ggml import convert_ggml
from yupana.models.convert_hub import convert_hub
from yupana.models.convert_llama2c import convert_llama2c
from yupana.models.formats import GgufFile
from yupana.models.formats.ggla import read_ggla
from yupana.models.formats.ggml_container import read_ggml
from yupana.models.formats.gguf_types import MAGIC
from yupana.models.formats.hub_folder import read_hub_folder
from yupana.models.formats.identify import identify
from yupana.models.formats.llama2c import read_llama2c, read_llama2c_words
from yupana.models.targets import refuse_source
from yupana.models.vocabulary_hub import hub_entries
from yupana.models.vocabulary_words import spm_entries
from yupana.models.write_conversion import Dtype, write_conversion


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    dtype: Dtype = "auto",
    vocabulary: str | PathLike[str] | None = None,
    model_base: str | PathLike[str] | None = None,
) -> Conversion:
    """Write a model as GGUF, or an adapter as its new name says, whole or not at all.

    Args:
        source: a file of ggml's starcoder or gpt-2 program, a model of llama2.c, an adapter of
            llama.cpp's former finetune (ggla), a folder of Hugging Face's with a Llama, or one
            of PEFT or MLX with an adapter. Of GGUF, adapters only.
        target: file to write or replace. A model is GGUF; an adapter too, but ggla if the name
            ends in `.bin`, and a folder of PEFT if it has no ending. None of those read.
        dtype: of the matrices; "auto" keeps the type they have, as far as GGUF has it. Vectors,
            norms and embeddings of positions are f32 always, as llama.cpp wants them.
        vocabulary: where to take the vocabulary from: a GGUF file, a `tokenizer.bin` of llama2.c,
            or a folder with `tokenizer.json`. Only llama2.c's models come without.
        model_base: the model an adapter is for, GGUF or a folder of Hugging Face's: adapters in
            folders have another order of rows. By default that which a folder of PEFT names.

    Returns:
        What was written, with notes for the user.

    Raises:
        SettingError: another dtype, a source that has the target's form already, a vocabulary of
            another size, an adapter that the target's form has no place for, or a target that is
            read.
        FileFormatError: the source is damaged, or of a kind that cannot be converted.
        OSError: the system cannot read or write.
    """
    if dtype not in get_args(Dtype):
        raise SettingError(
            f"convert: dtype: got {dtype!r}, want one of {', '.join(get_args(Dtype))}."
        )
    source, target = Path(source), Path(target)
    base = None if model_base is None else Path(model_base)
    read = [source, *([base] if base else [])]
    if vocabulary is not None and Path(vocabulary).suffix != ".gguf":  # else it is in the new file
        read.append(Path(vocabulary))
    refuse_source("convert", read, target)
    kind = adapter_kind(source)
    if kind is None and base is not None:
        raise SettingError(f"convert: model_base: got {base} with a model, want it for adapters.")
    if kind is not None and vocabulary is not None:
        raise SettingError(f"convert: vocabulary: got {vocabulary} with an adapter, want none.")
    if kind is not None and (kind, form_named(target)) != ("ggla", "gguf"):
        return convert_adapter(source, kind, target, dtype, base)
    conversion = read_conversion(source)
    if vocabulary is not None:
        entries = _vocabulary(Path(vocabulary), conversion)
        kept = {k: v for k, v in conversion.metadata.items() if not k.startswith("tokenizer.")}
        conversion = replace(conversion, metadata=kept | entries, notes=[])
    return write_conversion(conversion, source, target, dtype)


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
        f"{source}: nothing to convert: got {kind}, want a ggml or llama2.c file, a folder "
        f"of Hugging Face's, or an adapter. {remedy}"
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
