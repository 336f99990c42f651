"""`yupana quantize`: a model file with its matrices in a smaller type, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from yupana.graphlib.draw.text import format_bytes
from yupana.models.quantize import TensorReport, quantize_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Write a model with its matrices in another type, as llama.cpp's quantize does."""

    # Model to read (GGUF, not quantised yet).
    source: Positional[Path]
    # File to write or replace.
    target: Positional[Path]
    # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M,
    # Q6_K, IQ4_NL, IQ4_XS, F16, BF16 or F32.
    type: Positional[str]
    # Take matrices that are quantised already: errors add up.
    allow_requantize: bool = False
    # Give all matrices the one type, instead of more bits to those that need them.
    pure: bool = False
    # Print JSON instead of a table.
    json: bool = False


def run(settings: Settings) -> int:
    """Quantise; returns the exit code."""
    s = settings
    reports = quantize_model(
        s.source, s.target, s.type, allow_requantize=s.allow_requantize, is_pure=s.pure
    )
    print_reports(s.target, reports, s.json)
    return 0


def print_reports(target: Path, reports: Sequence[TensorReport], as_json: bool) -> None:
    """Print what became of each tensor of a file that was written."""
    if as_json:
        rows = [{k: v for k, v in asdict(r).items() if k != "_sums"} for r in reports]
        print(json.dumps(rows, indent=1))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(_table(reports))
    before, after = (
        sum(getattr(r, f"nbytes_{when}") for r in reports) for when in ("before", "after")
    )
    console.print(f"{target}: {format_bytes(after)} of tensors, {format_bytes(before)} before")


def _table(reports: Sequence[TensorReport]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for head in ("shape", "before", "after"):
        table.add_column(head)
    for head in ("bytes", "rmse", "largest error", "rmse / rms"):
        table.add_column(head, justify="right")
    for r in reports:
        share = f"{r.relative:.4f}" if r.relative >= 1e-4 else f"{r.relative:.1e}"
        errors = (f"{r.rmse:.3e}", f"{r.max_error:.3e}", share)
        table.add_row(
            r.name,
            " x ".join(map(str, r.shape)),
            r.before,
            r.after,
            format_bytes(r.nbytes_after),
            *(errors if r.is_rewritten else ("", "", "")),
        )
    return table
