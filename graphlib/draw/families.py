"""Families of ops as the eye should group them."""

from __future__ import annotations

from yupana.graphlib.task import Task

# Colours that differ in lightness too.
FILLS = {
    "products": "#BFDDF2",
    "rows": "#F0A878",
    "elements": "#FFFFFF",
    "copies": "#D9F0E8",
    "optimiser": "#9A6A96",
}
_GROUPS = {
    "matmul": "products",
    "convolution": "products",
    "norm": "rows",
    "softmax": "rows",
    "loss": "rows",
    "rope": "rows",
    "rows": "rows",
    "reduction": "rows",
    "sort": "rows",
    "copy": "copies",
    "view": "copies",
    "optimiser": "optimiser",
}


def family_of(task: Task) -> str:
    """One of `FILLS`: what the first of a task's ops does."""
    op = task.nodes[0].op
    return _GROUPS.get(op.family, "elements") if op else "elements"
