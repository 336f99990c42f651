"""`yupana convert`: models of other formats as GGUF, adapters from any form to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from yupana.graphlib.draw.text import format_bytes
from yupana.models.convert import convert
from yupana.models.write_conversion import Dtype


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Write a model of another format as GGUF, or an adapter in another form.

    Models are read from folders of Hugging Face's with a Llama or Qwen (config.json, safetensors,
    tokenizer.json), files of llama2.c, and of ggml's starcoder and gpt-2 programs. Adapters are
    read from GGUF and ggla files, and from folders of PEFT and MLX.
    """

    # File or folder to read.
    source: Positional[Path]
    # File to write or replace. A model is GGUF; an adapter too, but ggla if the name ends in
    # .bin, and a folder of PEFT if it has no ending.
    target: Positional[Path]
    # Type of the matrices; auto: the one they have. `yupana quantize` makes smaller ones.
    dtype: Dtype = "auto"
    # Where the vocabulary is: a GGUF file, llama2.c's tokenizer.bin, or a folder with
    # tokenizer.json. Models of llama2.c have none of their own.
    vocabulary: Annotated[Path | None, arg(name="vocab")] = None
    # Model an adapter in a folder is for, or will be for: GGUF, or a folder of Hugging Face's.
    # By default the one that a folder of PEFT names, if it is there.
    model_base: Annotated[Path | None, arg(aliases=["-m"])] = None


def run(settings: Settings) -> int:
    """Convert; returns the exit code."""
    s = settings
    conversion = convert(s.source, s.target, s.dtype, s.vocabulary, s.model_base)
    architecture = conversion.metadata["general.architecture"]
    holds = conversion.metadata.get("general.type", "model")
    print(
        f"{s.target}: {holds} of architecture {architecture}, {len(conversion.tensors)} tensors, "
        f"{format_bytes(_size(s.target))}"
    )
    for note in conversion.notes:
        print(f"note: {note}")
    return 0


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
