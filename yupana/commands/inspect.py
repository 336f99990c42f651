"""`yupana inspect`: what a model file holds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.errors import SettingError
from yupana.models.inspect import Listed, Summary, inspect_file

_LONGEST = 72  # letters of a value in the table


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Show what is in a file or folder with a model or an adapter.

    That is: GGUF, ggml, ggla, llama2.c, safetensors, a hub's folder, or one of PEFT or MLX.
    """

    # File or folder.
    path: Positional[Path]
    # Print JSON instead of tables.
    json: bool = False
    # Print lists in full, in JSON: all words of a vocabulary, say.
    arrays: bool = False


def run(settings: Settings) -> int:
    """Print the summary; returns the exit code."""
    if settings.arrays and not settings.json:
        raise SettingError("inspect: got --arrays alone, want --json with it.")
    summary = inspect_file(settings.path, None if settings.arrays else 8)
    if settings.json:
        print(json.dumps(describe(summary), indent=1, ensure_ascii=True))
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(Text(f"{summary.path}: {summary.format}, {summary.holds}"))
    if summary.entries:
        console.print(_entries(summary))
    if summary.tensors:
        console.print(_tensors(summary))
    types = ", ".join(f"{count} {name}" for name, count in summary.types.items()) or "none"
    console.print(
        Text(
            f"{len(summary.tensors)} tensors ({types}), {summary.n_elements:,} elements, "
            f"{format_bytes(summary.nbytes)}"
        )
    )
    return 0


def describe(summary: Summary) -> dict[str, Any]:
    """What JSON says of a file; numbers that JSON does not have are texts."""
    values = {key: _json(value) for key, value in summary.entries.items()}
    return {
        "path": str(summary.path),
        "format": summary.format,
        "holds": summary.holds,
        "entries": values,
        **({"entry_types": summary.entry_types} if summary.entry_types else {}),
        "tensors": [
            {key: value for key, value in asdict(tensor).items() if value is not None}
            for tensor in summary.tensors
        ],
        "types": summary.types,
        "elements": summary.n_elements,
        "bytes": summary.nbytes,
    }


def _json(value: Any) -> Any:
    if isinstance(value, Listed):
        return {**asdict(value), "first": _json(value.first)}
    if isinstance(value, list):
        return [_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _entries(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("entry", overflow="fold")
    table.add_column("value", overflow="fold")
    for key, value in summary.entries.items():
        table.add_row(Text(_shown(key)), Text(_shown(value)))
    return table


def _shown(value: Any) -> str:
    """A value on one line, without control characters, cut to a readable length."""
    if isinstance(value, Listed):
        first = ", ".join(_cut(repr(v), 16) for v in value.first)
        more = ", …" if value.length > len(value.first) else ""
        return _cut(f"{value.length} × {value.kind}: {first}{more}", _LONGEST)
    text = value if isinstance(value, str) else repr(value)
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: _LONGEST + 1])
    return _cut(clean, _LONGEST)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _tensors(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape")
    table.add_column("type")
    table.add_column("bytes", justify="right")
    for t in summary.tensors:
        shape = " x ".join(map(str, t.shape))
        table.add_row(Text(_shown(t.name)), shape, t.type, format_bytes(t.nbytes))
    return table
