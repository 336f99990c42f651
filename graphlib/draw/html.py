"""Tensors and programs as tables for notebooks; colours are left to the notebook's theme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np

from yupana.graphlib.draw.text import escape, format_bytes, format_time
from yupana.graphlib.program import Program
from yupana.graphlib.tensor import Tensor

_ROWS = 12  # of ops in a table
_EDGE, _SHOWN = 3, 64  # elements at each end of an axis; those up to which all are shown
_LEFT = ' style="text-align:left"'


def tensor_html(tensor: Tensor) -> str:
    """What it is and where it comes from; its values if it has some now."""
    rows = [("shape", f"{tensor.shape} {tensor.dtype.name}, {format_bytes(tensor.nbytes)}")]
    if tensor.op is not None:
        sources = ", ".join(src.label for src in tensor.srcs)
        rows.append(("op", f"{tensor.op.name} of {sources}"))
    params = ", ".join(f"{key}={value}" for key, value in tensor.params.items())
    if params:
        rows.append(("with", params))
    if tensor.view_src is not None:
        rows.append(("lies in", f"{tensor.view_src.label}, {tensor.view_offset} bytes on"))
    if tensor.role:
        rows.append(("role", tensor.role))
    file, _, line = tensor.site.rpartition(":")
    if file:
        rows.append(("recorded at", f"{PurePath(file).name}:{line}"))
    kind = "parameter" if tensor.is_param else "input" if tensor.is_input else "leaf"
    title = f"{tensor.name} " if tensor.name else ""
    head = f"<b>{escape(title)}</b>{tensor.op.name if tensor.op else kind}"
    return f"<div>{head}</div>{_table(rows)}{_values(tensor)}"


def program_html(program: Program) -> str:
    """Threads and memory, and the ops by the time that is predicted for them."""
    groups: dict[str, list[float]] = {}
    for task, steps in zip(program.tasks, program.steps, strict=True):
        groups.setdefault(task.name, []).append(sum(step.work_ns for step in steps))
    names = sorted(groups, key=lambda name: -sum(groups[name]))
    rows = [
        (name, str(len(groups[name])), format_time(sum(groups[name]))) for name in names[:_ROWS]
    ]
    if len(names) > _ROWS:
        rest = [ns for name in names[_ROWS:] for ns in groups[name]]
        rows.append((f"{len(names) - _ROWS} more", str(len(rest)), format_time(sum(rest))))
    threads = f"{program.threads} thread{'s' if program.threads > 1 else ''}"
    said = (
        f"{len(program.tasks)} tasks on {threads}, {format_bytes(program.plan.peak)} of results "
        f"({format_bytes(program.plan.total)} with what it reads)"
    )
    return f"<div>{escape(said)}</div>{_table(rows, ('op', 'tasks', 'predicted time'))}"


def _table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    head = "".join(f"<th{_LEFT}>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr>{''.join(f'<td{_LEFT}>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if heads else ''}{body}</table>"


def _values(tensor: Tensor) -> str:
    if not tensor.has_value or tensor.size == 0:
        return ""
    options = {"threshold": _SHOWN, "edgeitems": _EDGE, "precision": 4, "max_line_width": 100}
    return f"<pre>{escape(np.array2string(tensor.numpy(), **options))}</pre>"  # type: ignore[arg-type]
