"""The picture of a memory plan: offsets of blocks in the arena against time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from yupana.graphlib.draw.svg import Svg, text_width, ticks
from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.memory import ACTIVATIONS, GRADIENTS, WORKSPACE, Block, Plan

_FILLS = {ACTIVATIONS: "#BFDDF2", GRADIENTS: "#F0A878", WORKSPACE: "#9A6A96"}
_EDGE = "#33414F"
_WIDTH = 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 116, 92, 56  # margins of a panel
_ALONE, _BESIDE = 472, 330  # height of the scale of a single plan, and of one of several
_LABEL = 9.0  # points
_LEAST_LETTERS = 9  # that stand for a longer name
_BINARY = tuple(float(2**k) for k in range(11))  # steps of a scale in bytes


def plan_svg(plan: Plan, title: str = "", against: Mapping[str, Plan] | None = None) -> str:
    """The picture as the text of an SVG file: a panel for each plan, all on the same scales."""
    panels = [(title or "Memory plan", plan), *(against or {}).items()]
    height = _ALONE if len(panels) == 1 else _BESIDE
    n_tasks = max(plan.n_tasks for _, plan in panels)
    peak = max(plan.peak for _, plan in panels)
    outer = _TOP + height + _BOTTOM
    svg = Svg(_WIDTH, outer * len(panels))
    for number, (name, shown) in enumerate(panels):
        _draw_panel(svg, shown, name, _Frame(outer * number, height, n_tasks, peak))
    return str(svg)


def _draw_panel(svg: Svg, plan: Plan, title: str, frame: _Frame) -> None:
    _draw_heading(svg, frame, plan, title)
    _draw_axes(svg, frame)
    for block in plan.blocks:
        _draw_block(svg, frame, block)
    _draw_alive(svg, frame, plan)
    for block in plan.blocks:
        _draw_name(svg, frame, block)
    _draw_marks(svg, frame, plan)


class _Frame:
    """Where tasks and bytes lie in a panel that begins at `start`, points from the page's top."""

    def __init__(self, start: float, height: float, n_tasks: int, peak: int) -> None:
        self.start, self.height = start, height
        self.end = n_tasks + 1  # outputs live on behind the last task
        self.top = max(peak, 1) * 1.03
        self.n_tasks = n_tasks

    def x(self, task: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * task / self.end

    def y(self, offset: float) -> float:
        return self.start + _TOP + self.height * (1 - offset / self.top)

    def place(self, block: Block) -> tuple[float, float, float, float]:
        """x, y, width and height of a block."""
        left, right = self.x(block.first), self.x(block.last + 1)
        low, high = self.y(block.offset), self.y(block.offset + block.size)
        return left, high, right - left, low - high


def _draw_heading(svg: Svg, frame: _Frame, plan: Plan, title: str) -> None:
    top = frame.start
    svg.text(_LEFT, top + 26, title, 17, font_weight="bold")
    outside = [f"{k} {format_bytes(n)}" for k, n in plan.leaf_bytes.items() if n]
    arena = f"{len(plan.blocks)} blocks in an arena of {format_bytes(plan.peak)}"
    beside = f"; beside it {', '.join(outside)}" if outside else ""
    svg.text(_LEFT, top + 45, arena + beside, 11, fill="#444444")
    x = float(_LEFT)
    for kind, fill in _FILLS.items():
        if not plan.by_class[kind]:
            continue
        text = f"{kind}, at most {format_bytes(plan.by_class[kind])}"
        svg.rect(x, top + 58, 16, 11, fill=fill, stroke=_EDGE, stroke_width=0.6)
        svg.text(x + 22, top + 67, text)
        x += 22 + text_width(text, 11) + 22
    svg.line(x, top + 63.5, x + 16, top + 63.5, stroke="#000000", stroke_width=1.6)
    svg.text(x + 22, top + 67, "bytes alive")


def _draw_axes(svg: Svg, frame: _Frame) -> None:
    bottom, right = frame.y(0), frame.x(frame.end)
    for offset in ticks(frame.top, 8, _BINARY):
        y = frame.y(offset)
        svg.line(_LEFT, y, right, y, stroke="#E2E2E2")
        svg.text(_LEFT - 6, y + 4, format_bytes(offset), text_anchor="end", fill="#444444")
    for task in ticks(frame.n_tasks, 10):
        x = frame.x(task)
        svg.line(x, bottom, x, bottom + 4, stroke="#444444")
        svg.text(x, bottom + 17, f"{task:g}", text_anchor="middle", fill="#444444")
    svg.line(_LEFT, bottom, right, bottom, stroke="#444444")
    svg.line(_LEFT, bottom, _LEFT, frame.y(frame.top), stroke="#444444")
    middle = (_LEFT + right) / 2
    svg.text(middle, bottom + 38, "task, in the order they run", text_anchor="middle")
    half = (bottom + frame.y(frame.top)) / 2
    turned = f"rotate(-90 16 {half:.1f})"
    svg.text(16, half, "offset in the arena", text_anchor="middle", transform=turned)


def _draw_block(svg: Svg, frame: _Frame, block: Block) -> None:
    x, y, width, height = frame.place(block)
    taken = f", taken over by {', '.join(t.label for t in block.tensors[1:])}"
    note = (
        f"{block.label}{taken if len(block.tensors) > 1 else ''}\n{block.kind}, "
        f"{block.size:,} bytes at {block.offset:,}, tasks {block.first} to {block.last}"
    )
    thin = min(width, height) < 3  # an edge would hide the colour
    edge = {"stroke": _EDGE, "stroke_width": 0.15 if thin else 0.6}
    svg.rect(x, y, width, height, note, fill=_FILLS[block.kind], **edge)
    for kind, first, last in block.spans():
        if kind != block.kind:
            left, right = frame.x(first), frame.x(last + 1)
            svg.rect(left, y, right - left, height, note, fill=_FILLS[kind], **edge)


def _draw_name(svg: Svg, frame: _Frame, block: Block) -> None:
    """The name of a block that has room for it, along its longer side."""
    kind, first, last = max(block.spans(), key=lambda span: span[2] - span[1])
    _, y, _, height = frame.place(block)
    x, width = frame.x(first), frame.x(last + 1) - frame.x(first)
    starts = [start for _, start, _ in block.spans()]  # each with the tensor that is written then
    label = block.tensors[starts.index(first)].label if block.tensors else block.label
    long, short = max(width, height), min(width, height)
    short_name = label.partition(" (")[0]
    room = int((long - 6) / text_width("x", _LABEL))  # letters
    cut = f"{short_name[: room - 1]}…" if room >= _LEAST_LETTERS else ""
    text = next(t for t in (label, short_name, cut) if len(t) <= room or not t)
    if short < _LABEL + 2 or not text:
        return
    cx, cy = x + width / 2, y + height / 2
    fill = "#FFFFFF" if kind == WORKSPACE else "#000000"
    halo = {"stroke": _FILLS[kind], "stroke_width": 3, "paint_order": "stroke"}
    if width < height:
        halo["transform"] = f"rotate(-90 {cx:.1f} {cy:.1f})"
    svg.text(cx, cy + 3.2, text, _LABEL, text_anchor="middle", fill=fill, **halo)


def _draw_alive(svg: Svg, frame: _Frame, plan: Plan) -> None:
    alive = plan.live_bytes()[: plan.n_tasks].tolist()
    points = [(frame.x(k + d), frame.y(n)) for k, n in enumerate(alive) for d in (0, 1)]
    if points:
        svg.path(points, stroke="#FFFFFF", stroke_width=3.2, stroke_opacity=0.7)
        svg.path(points, stroke="#000000", stroke_width=1.4)


def _draw_marks(svg: Svg, frame: _Frame, plan: Plan) -> None:
    """The peak, and what no placement can go below."""
    right = frame.x(frame.end)
    peak, bound = frame.y(plan.peak), frame.y(plan.lower_bound)
    svg.line(_LEFT, peak, right + 6, peak, stroke="#A30000", stroke_width=1.4)
    svg.line(_LEFT, bound, right + 6, bound, stroke="#A30000", stroke_dasharray="5 4")
    svg.text(right + 10, peak - 8, "peak", fill="#A30000")
    svg.text(right + 10, peak + 4, format_bytes(plan.peak), fill="#A30000", font_weight="bold")
    below = max(bound + 4, peak + 24)
    above = 100 * (plan.peak / plan.lower_bound - 1) if plan.lower_bound else 0.0
    svg.text(right + 10, below, "lower bound", fill="#A30000")
    svg.text(right + 10, below + 13, format_bytes(plan.lower_bound), fill="#A30000")
    svg.text(right + 10, below + 26, f"({above:.1f} % above it)", 9, fill="#A30000")
    if plan.n_tasks:
        at = frame.x(int(np.argmax(plan.live_bytes()[: plan.n_tasks])) + 0.5)
        svg.line(
            at, peak, at, frame.y(0), stroke="#A30000", stroke_width=0.8, stroke_dasharray="2 3"
        )
