"""An outline of a graph as source of the graphviz program `dot`."""

from __future__ import annotations

from typing import Any

import graphviz

from yupana.graphlib.draw.boxes import (
    AGAIN_LANE,
    BACKWARD,
    BACKWARD_LANE,
    DATA,
    FORWARD,
    FORWARD_LANE,
    GRADIENT,
    INPUT,
    KINDS,
    LANES,
    PARAM,
    RECOMPUTED,
    UPDATE_LANE,
    VIEW,
    WRITE,
    Box,
    Outline,
)
from yupana.graphlib.draw.details import Details
from yupana.graphlib.draw.labels import box_label, small, tooltip
from yupana.graphlib.draw.text import escape

# Okabe and Ito's colours, which colour-blind readers tell apart, on tints of different
# lightness; shapes differ too, so that print in grey loses nothing.
STYLES: dict[str, dict[str, str]] = {
    INPUT: {"shape": "parallelogram", "fillcolor": "#D9F0E8", "color": "#00795A", "margin": "0,0"},
    PARAM: {"shape": "cylinder", "fillcolor": "#BFDDF2", "color": "#005A8F", "margin": "0.1,0.08"},
    DATA: {"shape": "cylinder", "fillcolor": "#FFFFFF", "color": "#005A8F", "margin": "0.1,0.08"},
    FORWARD: {"shape": "box", "fillcolor": "#FFFFFF", "color": "#333333"},
    VIEW: {"shape": "box", "style": "rounded", "color": "#999999", "fontcolor": "#555555"},
    BACKWARD: {"shape": "box", "style": "filled,rounded", "fillcolor": "#FCE9DC"},
    GRADIENT: {"shape": "note", "fillcolor": "#F2B48C", "color": "#A34700"},
    RECOMPUTED: {"shape": "box", "style": "filled,dashed", "fillcolor": "#F3F3F3"},
    WRITE: {"shape": "component", "fillcolor": "#E9D3E2", "color": "#8A3D6C"},
}
STYLES[BACKWARD]["color"] = "#B54F00"
STYLES[RECOMPUTED]["color"] = "#333333"
_OUTPUT = {"peripheries": "2", "penwidth": "1.6"}
_MARKED = {"penwidth": "3.5"}
_KERNEL = {"style": "dotted", "color": "#333333", "penwidth": "1.2"}
_LEGEND_COLUMNS = 3
_TITLES = {
    FORWARD_LANE: "forward",
    AGAIN_LANE: "forward, computed again",
    BACKWARD_LANE: "backward",
    UPDATE_LANE: "update",
}
_LOOSE = 5  # boxes of a part that is stacked
_NO_DETAILS = Details()
_MANY = 800  # boxes; beyond, dot gets less time for beauty


def to_dot(
    outline: Outline, title: str = "", details: Details = _NO_DETAILS, page: str = ""
) -> str:
    """Graphviz source of an outline; `page` is the most it may measure, in inches."""
    dot = graphviz.Digraph("graph")
    dot.attr(rankdir="TB", nodesep="0.18", ranksep="0.2", fontname="Helvetica", fontsize="11")
    dot.attr(newrank="false", compound="true", outputorder="edgesfirst", margin="0.1")
    if title:
        dot.attr(label=f"<{escape(title)}>", labelloc="t", fontsize="16")
    if page:
        dot.attr(size=page)
    if len(outline.boxes) > _MANY:
        dot.attr(nslimit="1", mclimit="0.3", splines="line")
    dot.attr("node", fontname="Helvetica", fontsize="10", style="filled", margin="0.1,0.05")
    dot.attr("node", height="0.2", width="0.3")
    dot.attr("edge", arrowsize="0.6", color="#555555")
    lanes = [lane for lane in LANES if any(box.lane == lane for box in outline.boxes)]
    for lane in lanes:
        with dot.subgraph(name=f"cluster_{lane}") as part:
            part.attr(label=_TITLES[lane] if len(lanes) > 1 else "", color="#BBBBBB")
            part.attr(style="rounded", fontsize="14", margin="10", labeljust="l")
            _add_lane(part, outline, lane, details)
    for source, reader in outline.arrows:
        _add_arrow(dot, source, reader)
    _stack_loose_boxes(dot, outline)
    if outline.boxes:
        _add_legend(dot, outline)
    return str(dot.source)


def _add_lane(part: Any, outline: Outline, lane: str, details: Details) -> None:
    boxes = [box for box in outline.boxes if box.lane == lane]
    _add_boxes(part, outline, [box for box in boxes if box.run is None], details)
    for run, copies in enumerate(outline.copies):
        inside = [box for box in boxes if box.run == run]
        if inside:
            with part.subgraph(name=f"cluster_{lane}_{run}") as frame:
                frame.attr(label=f"layer × {copies}", style="rounded,filled", color="#888888")
                frame.attr(fillcolor="#FAFAF5", penwidth="1.5", fontsize="14", margin="10")
                _add_boxes(frame, outline, inside, details)


def _add_boxes(part: Any, outline: Outline, boxes: list[Box], details: Details) -> None:
    for box in boxes:
        _add_box(part, box, details)
    for k, members in enumerate(outline.kernels):
        if members[0] in boxes:
            with part.subgraph(name=f"cluster_kernel_{k}") as frame:
                frame.attr(label="", margin="5", **_KERNEL)
                for box in members:
                    frame.node(_id(box))


def _add_box(part: Any, box: Box, details: Details) -> None:
    style = dict(STYLES[box.kind])
    if box.is_view:
        style = {**STYLES[VIEW], "margin": "0.05,0.02"}
        if box.kind != FORWARD:
            style["color"] = STYLES[box.kind]["color"]
        if box.kind == RECOMPUTED:
            style["style"] = "rounded,dashed"
    if box.is_output:
        style |= _OUTPUT
    if box.is_marked:
        style |= _MARKED
    part.node(_id(box), label=box_label(box, details), tooltip=tooltip(box), **style)


def _add_arrow(dot: Any, source: Box, reader: Box) -> None:
    if source.lane == reader.lane:
        dot.edge(_id(source), _id(reader))
    else:
        dot.edge(_id(source), _id(reader), color="#AAAAAA", constraint="false")


def _add_legend(dot: Any, outline: Outline) -> None:
    """One sample of each kind that occurs, below the first lane."""
    kinds = {VIEW if box.is_view else box.kind for box in outline.boxes}
    samples = [(kind, STYLES[kind]) for kind in KINDS if kind in kinds]
    if any(box.is_output for box in outline.boxes):
        samples.append(("output", STYLES[FORWARD] | _OUTPUT))
    if any(box.is_marked for box in outline.boxes):
        samples.append(("asked for", STYLES[FORWARD] | _MARKED))
    if outline.kernels:
        samples.append(("one kernel", {"shape": "box", **_KERNEL}))
    above = _lowest(outline)
    with dot.subgraph(name="cluster_legend") as part:
        part.attr(label="legend", style="rounded", color="#BBBBBB", fontsize="11", margin="6")
        for start in range(0, len(samples), _LEGEND_COLUMNS):
            with part.subgraph() as row:
                row.attr(rank="same")
                for k, (name, style) in [*enumerate(samples)][start : start + _LEGEND_COLUMNS]:
                    row.node(f"legend_{k}", label=f"<{small(name)}>", **style)
                    if k > start:
                        row.edge(f"legend_{k - 1}", f"legend_{k}", style="invis")
    for k in range(0, len(samples), _LEGEND_COLUMNS):
        upper = above if k == 0 else f"legend_{k - _LEGEND_COLUMNS}"
        dot.edge(upper, f"legend_{k}", style="invis")


def _lowest(outline: Outline) -> str:
    """The box at the bottom of the first lane."""
    first = outline.boxes[0].lane
    depths = {box: 0 for box in outline.boxes if box.lane == first}
    for source, reader in sorted(outline.arrows, key=lambda arrow: arrow[1].number):
        if source in depths and reader in depths:
            depths[reader] = max(depths[reader], depths[source] + 1)
    return _id(max(depths, key=lambda box: (depths[box], box.number)))


def _stack_loose_boxes(dot: Any, outline: Outline) -> None:
    """Boxes that few arrows join, such as optimiser steps, stand below one another."""
    above: dict[tuple[str, int | None], Box] = {}
    for part in _components(outline):
        frames = {(box.lane, box.run) for box in part}
        if len(part) <= _LOOSE and len(frames) == 1 and part[0].lane != FORWARD_LANE:
            frame = frames.pop()
            if frame in above:
                dot.edge(_id(above[frame]), _id(part[0]), style="invis")
            above[frame] = part[-1]


def _components(outline: Outline) -> list[list[Box]]:
    """Boxes that arrows join, directly or through others, in order."""
    parts = {box: [box] for box in outline.boxes}
    for a, b in outline.arrows:
        if parts[a] is not parts[b]:
            parts[a] += parts[b]
            for box in parts[b]:
                parts[box] = parts[a]
    unique = {id(part): sorted(part, key=lambda box: box.number) for part in parts.values()}
    return sorted(unique.values(), key=lambda part: part[0].number)


def _id(box: Box) -> str:
    return f"n{box.number}"
