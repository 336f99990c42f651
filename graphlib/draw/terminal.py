"""Plans, graphs, programs and profiles as text, for a terminal of any width."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.draw.text import format_bytes, format_flops, format_time
from yupana.graphlib.graph import Graph
from yupana.graphlib.memory import Plan
from yupana.graphlib.profile import Profile
from yupana.graphlib.program import Program
from yupana.graphlib.tensor import Tensor

_LEAST, _MOST = 24, 100  # columns
_LEAST_NAME = 12  # columns of the first column of a table
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ROWS = 4  # of a curve
_ROWS_OF_OPS = 20


def show_plan(plan: Plan) -> str:
    """Bytes by class, the arena against its lower bound, and the bytes alive over time."""
    width = _width()
    sizes = {name: size for name, size in plan.by_class.items() if size}
    longest = max(sizes.values(), default=1)
    room = width - 26
    lines = []
    for name, size in sizes.items():
        bar = "#" * round(room * size / longest) if room > 4 else ""
        lines.append(f"{name:12}{format_bytes(size):>10}  {bar}".rstrip())
    above = 100.0 * (plan.peak / plan.lower_bound - 1) if plan.lower_bound else 0.0
    lines.append(f"{'arena':12}{format_bytes(plan.peak):>10}")
    said = f"{above:.1f} % above the lower bound"
    if room >= len(said):
        lines[-1] += f"  {said}"
    else:
        lines += _wrapped(f"  {said}", width)
    lines.append(f"{'total':12}{format_bytes(plan.total):>10}")
    if plan.n_tasks > 1 and _can_show(_EIGHTHS):
        lines += _wrapped(f"bytes alive over {plan.n_tasks} tasks:", width)
        lines += curve(plan.live_bytes()[: plan.n_tasks], width)
    return "\n".join(lines)


def show_graph(graph: Graph) -> str:
    """What the graph reads, and its ops by the work they are."""
    width = _width()
    groups: dict[str, list[Tensor]] = {}
    for node in graph.nodes:
        groups.setdefault(node.op.name if node.op else "", []).append(node)
    flops = {
        name: sum(node.op.cost_of(node).flops for node in nodes if node.op)
        for name, nodes in groups.items()
    }
    names = sorted(groups, key=lambda name: (-flops[name], -len(groups[name])))
    rows = [
        (name, str(len(groups[name])), format_flops(flops[name]) if flops[name] else "")
        for name in names
    ]
    return "\n".join(
        [
            *_wrapped(f"{len(graph.nodes)} nodes, {format_flops(sum(flops.values()))}", width),
            *_wrapped(f"reads {_leaves(graph.leaves)}", width),
            *_wrapped(f"gives {_some([t.label for t in graph.outputs])}", width),
            *table(("op", "nodes", "work"), rows, width),
        ]
    )


def show_program(program: Program) -> str:
    """Threads, arena, and the ops by the time that is predicted for them."""
    groups: dict[str, list[float]] = {}
    for task, steps in zip(program.tasks, program.steps, strict=True):
        groups.setdefault(task.name, []).append(sum(step.work_ns for step in steps))
    names = sorted(groups, key=lambda name: -sum(groups[name]))
    rows = [(name, str(len(groups[name])), format_time(sum(groups[name]))) for name in names]
    said = (
        f"{len(program.tasks)} tasks on {program.threads} thread{'s' * (program.threads > 1)}, "
        f"{format_bytes(program.plan.peak)} of results"
    )
    width = _width()
    return "\n".join([*_wrapped(said, width), *table(("op", "tasks", "predicted"), rows, width)])


def show_profile(profile: Profile) -> str:
    """The ops by the time they take on one thread, and what they achieve."""
    total = profile.ns or 1.0
    rows = []
    for name, timings in profile.by_op().items():
        ns = sum(t.ns for t in timings)
        flops, nbytes = (sum(getattr(t.task.cost, k) for t in timings) for k in ("flops", "nbytes"))
        speeds = [f"{work / ns:.3g}" if ns and work else "" for work in (flops, nbytes)]
        predicted = format_time(sum(t.predicted_ns for t in timings))
        share = f"{100 * ns / total:.1f} %"
        rows.append((name, format_time(ns), share, str(len(timings)), *speeds, predicted))
    heads = ("op", "time", "share", "tasks", "GFLOP/s", "GB/s", "predicted")
    n_threads = len(profile.watched.threads)
    width = _width()
    said = (
        f"{len(profile)} tasks: {format_time(profile.ns)} on one thread, "
        f"{format_time(profile.watched.ns)} in a run on {n_threads}"
    )
    return "\n".join([*_wrapped(said, width), *table(heads, rows, width)])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of a table; columns that do not fit are left out, those to the right first.

    >>> table(("op", "nodes", "work"), [("mul_mat", "3", "96 FLOP")], 80)
    ['op       nodes     work', 'mul_mat      3  96 FLOP']
    >>> table(("op", "nodes", "work"), [("mul_mat+mul_mat", "3", "96 FLOP")], 19)
    ['op            nodes', 'mul_mat+mul…      3']
    """
    shown = [heads, *rows[:_ROWS_OF_OPS]]
    sizes = [max(len(row[k]) for row in shown) + (2 if k else 0) for k in range(len(heads))]
    columns = len(heads)
    while columns > 1 and min(sizes[0], _LEAST_NAME) + sum(sizes[1:columns]) > width:
        columns -= 1
    first = min(sizes[0], width - sum(sizes[1:columns]))
    lines = []
    for row in shown:
        name = row[0] if len(row[0]) <= first else row[0][: first - 1] + "…"
        cells = (f"{cell:>{size}}" for cell, size in zip(row[1:columns], sizes[1:], strict=False))
        lines.append(f"{name:{first}}{''.join(cells)}".rstrip())
    if len(rows) > _ROWS_OF_OPS:
        lines.append(f"and {len(rows) - _ROWS_OF_OPS} more")
    return lines


def curve(values: NDArray[np.int64], width: int) -> list[str]:
    """Values against their place, as lines of block letters; the largest of each column counts.

    >>> curve(np.array([1, 2, 4, 8]), 4)
    ['   █', '   █', '  ██', '▄███']
    """
    columns = np.array_split(values, min(width, len(values)))
    top = max(int(values.max(initial=0)), 1)
    heights = [-(-8 * _ROWS * int(column.max()) // top) for column in columns]
    lines = []
    for row in reversed(range(_ROWS)):
        lines.append("".join(_EIGHTHS[min(max(h - 8 * row, 0), 8)] for h in heights).rstrip())
    return lines


def _leaves(leaves: Iterable[Tensor]) -> str:
    params = [leaf for leaf in leaves if leaf.is_param]
    inputs = [leaf for leaf in leaves if leaf.is_input]
    others = [leaf for leaf in leaves if not (leaf.is_param or leaf.is_input)]
    parts = []
    if params:
        n = sum(param.size for param in params)
        parts.append(f"{len(params)} parameter{'s' * (len(params) > 1)} of {n:,} elements")
    if inputs:
        parts.append(f"inputs {_some([leaf.label for leaf in inputs])}")
    if others:
        parts.append(f"{len(others)} other leaves")
    return ", ".join(parts) or "nothing"


def _some(labels: list[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more


def _wrapped(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, _LEAST), _MOST)


def _can_show(text: str) -> bool:
    """Whether standard output has these letters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
