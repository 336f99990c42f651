"""`yupana ops`: the registry as a table."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from typing import Any

from yupana.graphlib.op import REGISTRY, Op


@dataclass(frozen=True, kw_only=True)
class Settings:
    """List every operation."""

    # Print JSON instead of a table.
    json: bool = False
    # Only operations of this family.
    family: str = ""


def run(settings: Settings) -> int:
    """Print the table; returns the exit code."""
    from yupana.graphlib import ops  # noqa: F401  fills the registry

    rows = [describe(op) for _, op in sorted(REGISTRY.items(), key=_by_family)]
    families = sorted({row["family"] for row in rows})
    if settings.family:
        rows = [row for row in rows if row["family"] == settings.family]
        if not rows:
            from yupana.graphlib.errors import SettingError

            raise SettingError(
                f"ops: no such family: got {settings.family!r}, want one of {', '.join(families)}."
            )
    if settings.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    print(table(rows, width))
    return 0


def _by_family(item: tuple[str, Op[Any]]) -> tuple[str, str]:
    return item[1].family, item[0]


def describe(op: Op[Any]) -> dict[str, Any]:
    """What the table says of one operation."""
    return {
        "name": op.name,
        "family": op.family,
        "gradient": op.vjp is not None,
        "view": op.is_view,
        "inplace": list(op.inplace),
        "writes": list(op.mutates),
        "doc": op.doc.strip().splitlines()[0],
    }


def table(rows: list[dict[str, Any]], width: int) -> str:
    """Rows cut to `width` columns; narrow terminals lose columns from the right.

    >>> row = {"name": "silu", "family": "unary", "gradient": True, "view": False}
    >>> print(table([row | {"inplace": [0], "writes": [], "doc": "x · sigmoid(x)."}], 60))
    op    family  gradient  memory    what it computes
    silu  unary   yes       in place  x · sigmoid(x).
    """
    heads = ("op", "family", "gradient", "memory", "what it computes")
    lines = [heads] + [
        (r["name"], r["family"], "yes" if r["gradient"] else "no", _memory(r), r["doc"])
        for r in rows
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    wanted = len(heads)
    while wanted > 1 and sum(widths[: wanted - 1]) + 2 * (wanted - 1) > width - 8:
        wanted -= 1  # no room for even a few letters of the last column
    text = []
    for line in lines:
        cells = [f"{line[k]:{widths[k]}}" for k in range(wanted)]
        whole = "  ".join(cells).rstrip()
        text.append(whole if len(whole) <= width else whole[: width - 1] + "…")
    return "\n".join(text)


def _memory(row: dict[str, Any]) -> str:
    if row["view"]:
        return "view"
    if row["writes"]:
        return "writes"
    return "in place" if row["inplace"] else ""
