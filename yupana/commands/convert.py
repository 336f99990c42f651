"""`yupana convert`: models and adapters of other formats as GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from yupana.graphlib.draw.text import format_bytes
from yupana.models.convert import Dtype, convert


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Write a model or adapter of another format as GGUF.

    Read are: folders of Hugging Face's with a Llama (config.json, safetensors, tokenizer.json),
    models of llama2.c, files of ggml's starcoder and gpt-2 programs, and ggla adapters.
    """

    # File or folder to read.
    source: Positional[Path]
    # GGUF file to write or replace.
    target: Positional[Path]
    # Type of the matrices; auto: the one they have. `yupana quantize` makes smaller ones.
    dtype: Dtype = "auto"
    # Where the vocabulary is: a GGUF file, llama2.c's tokenizer.bin, or a folder with
    # tokenizer.json. Models of llama2.c have none of their own.
    vocabulary: Annotated[Path | None, arg(name="vocab")] = None


def run(settings: Settings) -> int:
    """Convert; returns the exit code."""
    s = settings
    conversion = convert(s.source, s.target, s.dtype, s.vocabulary)
    architecture = conversion.metadata["general.architecture"]
    holds = conversion.metadata.get("general.type", "model")
    print(
        f"{s.target}: {holds} of architecture {architecture}, {len(conversion.tensors)} tensors, "
        f"{format_bytes(s.target.stat().st_size)}"
    )
    for note in conversion.notes:
        print(f"note: {note}")
    return 0
