"""`yupana export-lora`: a model with adapters worked into its weights, and what rounding cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from yupana.commands.quantize import print_reports
from yupana.graphlib.errors import SettingError
from yupana.models.adapter_files import load_adapter
from yupana.models.formats import GgufFile
from yupana.models.llama_gguf import read_config
from yupana.models.merge import merge_adapters


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Merge LoRA adapters into a model, as llama.cpp's export-lora does.

    It prints for each tensor what writing cost: the values in the file against the exact sum
    W + scale · alpha / r · B A in float64. rmse is the root of the mean squared error, the last
    column that over the root mean square of the sum. Tensors without an adapter are copied.
    """

    # Model the adapters are for (GGUF, of any type).
    model_base: Annotated[Path, arg(aliases=["-m"])]
    # File to write or replace (GGUF).
    model_out: Annotated[Path, arg(aliases=["-o"])]
    # Adapter: a GGUF or ggla file, or a folder of PEFT. May be given several times.
    lora: UseAppendAction[Annotated[tuple[Path, ...], arg(aliases=["-l"])]] = ()
    # Adapter and the scale it is used with. May be given several times.
    lora_scaled: UseAppendAction[
        Annotated[tuple[tuple[Path, float], ...], arg(aliases=["-s"])]
    ] = ()
    # Type to write, as `yupana quantize` has them; by default each tensor keeps its own.
    type: str | None = None
    # Print JSON instead of a table.
    json: bool = False


def run(settings: Settings) -> int:
    """Merge; returns the exit code."""
    s = settings
    asked = [*((path, 1.0) for path in s.lora), *s.lora_scaled]
    if not asked:
        raise SettingError(
            "export-lora: got no adapter, want at least one. Pass --lora FILE, or --lora-scaled "
            "FILE SCALE."
        )
    for path, _ in asked:
        if path.resolve() == s.model_out.resolve():
            raise SettingError(
                f"export-lora: got {path} as adapter and as file to write, want two. The adapter "
                "would be lost."
            )
    sizes = None
    if any(path.is_dir() for path, _ in asked):
        with GgufFile(s.model_base) as file:
            sizes = read_config(file)
    adapters = [(load_adapter(path, sizes), scale) for path, scale in asked]
    print_reports(s.model_out, merge_adapters(s.model_base, adapters, s.model_out, s.type), s.json)
    return 0
