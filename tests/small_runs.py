"""Runs that train a small model within a second, whatever a test does with them."""

from pathlib import Path
from typing import Any

from yupana.train.settings import RunSettings

TEXT = "the llama eats grass, the ñandú runs; " * 60
SIZES = {"ctx": 8, "batch": 2, "embd": 16, "ff": 24, "head": 2, "layer": 1, "threads": 1}
HOW = {"vocab": "characters", "adam_iter": 6, "eval_every": 3, "warmup": 2}


def settings(folder: Path, **changes: Any) -> RunSettings:
    """Settings of such a run, which leaves its files in a folder."""
    chosen: dict[str, Any] = {"model_out": folder / "m.gguf", **SIZES, **HOW, **changes}
    return RunSettings(**chosen)


def flags_of(values: dict[str, Any]) -> list[str]:
    """The same as the command line has them.

    >>> flags_of({"adam_iter": 6})
    ['--adam-iter=6']
    """
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
