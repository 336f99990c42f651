"""What a picture of a graph shows: boxes and arrows, with repeated layers drawn once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping

from yupana.graphlib.draw.boxes import (
    AGAIN_LANE,
    BACKWARD,
    BACKWARD_LANE,
    DATA,
    FORWARD,
    FORWARD_LANE,
    GRADIENT,
    INPUT,
    LANES,
    PARAM,
    RECOMPUTED,
    UPDATE_LANE,
    WRITE,
    Box,
    Outline,
    common_name,
)
from yupana.graphlib.draw.fold import Folding, find_layers
from yupana.graphlib.draw.joining import (
    join_chains,
    shorten_crossings,
    write_constants_into_readers,
)
from yupana.graphlib.draw.select import Part
from yupana.graphlib.fusion import find_groups
from yupana.graphlib.graph import Graph
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor


def make_outline(
    graph: Graph, fold: bool = True, fuse: bool = True, part: Part | None = None
) -> Outline:
    """Decide what a picture of `graph`, or of some of its tensors, shows."""
    nodes = graph.nodes
    folding = find_layers(nodes) if fold else Folding()
    if part is not None:
        folding = folding.narrowed(part.tensors)
    groups: dict[Hashable, list[Tensor]] = {}
    for tensor in [*graph.leaves, *sorted(nodes, key=lambda node: node.sequence)]:
        if part is None or tensor in part.tensors:
            groups.setdefault(folding.group(tensor), []).append(tensor)
    lanes = _find_lanes(nodes)
    outputs = set(graph.outputs)
    copies = _copies(folding, groups.values())
    boxes: dict[Hashable, Box] = {}
    for key, tensors in groups.items():
        first = tensors[0]
        place = folding.places.get(first)
        run = place.run if place and copies[place.run] > 1 else None
        box = Box(_kind(first), lanes[first], run, tensors)
        box.is_view = first.op is not None and first.op.is_view
        box.is_output = any(t in outputs for t in tensors) and box.kind != WRITE
        box.is_sum = first in folding.sums
        boxes[key] = box
    outline = Outline(list(boxes.values()), [], copies)
    _connect(outline, boxes, folding)
    if part is not None:
        _note_cuts(outline, nodes, part)
    write_constants_into_readers(outline)
    join_chains(outline)
    shorten_crossings(outline)
    _number(outline)
    if fuse:
        _frame_kernels(outline, find_groups(nodes, graph.outputs))
    return outline


def _kind(tensor: Tensor) -> str:
    if tensor.op is None:
        return PARAM if tensor.is_param else INPUT if tensor.is_input else DATA
    if tensor.role:
        return {"recomputed": RECOMPUTED, "gradient": GRADIENT}.get(tensor.role, BACKWARD)
    return WRITE if tensor.op.mutates else FORWARD


def _find_lanes(nodes: Iterable[Tensor]) -> dict[Tensor, str]:
    lanes: dict[Tensor, str] = {}
    for node in nodes:
        if node.role:
            lane = AGAIN_LANE if node.role == "recomputed" else BACKWARD_LANE
        else:
            later = any(lanes.get(src) in (BACKWARD_LANE, UPDATE_LANE) for src in node.srcs)
            lane = UPDATE_LANE if later else FORWARD_LANE
        lanes[node] = lane
        for src in node.srcs:
            if src.is_leaf and LANES.index(lanes.get(src, UPDATE_LANE)) >= LANES.index(lane):
                lanes[src] = lane
    return defaultdict(lambda: FORWARD_LANE, lanes)


def _connect(outline: Outline, boxes: Mapping[Hashable, Box], folding: Folding) -> None:
    arrows: dict[tuple[Box, Box], None] = {}
    feeds: dict[tuple[Box, Box], None] = {}
    for box in outline.boxes:
        for tensor in box.tensors:
            here = folding.places.get(tensor)
            for src in tensor.srcs:
                source = boxes.get(folding.group(src))
                if source is None or src not in source.tensors:  # not in the part that is drawn
                    continue
                there = folding.places.get(src)
                next_copy = here and there and (here.run, source.lane) == (there.run, box.lane)
                if next_copy and here and there and here.copy != there.copy:
                    feeds[source, box] = None
                elif source is not box:
                    arrows[source, box] = None
    outline.arrows = list(arrows)
    for source, box in feeds:
        source.feeds.append(box)
    for source, box in reversed(outline.arrows):
        if source.tensor.is_leaf and source.lane == box.lane:
            source.run = box.run if source.run is not None else None


def _copies(folding: Folding, groups: Iterable[list[Tensor]]) -> list[int]:
    """How many of each run's copies are drawn."""
    seen: list[set[int]] = [set() for _ in folding.copies]
    for tensor in (tensor for tensors in groups for tensor in tensors):
        place = folding.places.get(tensor)
        if place is not None:
            seen[place.run].add(place.copy)
    return [len(copies) for copies in seen]


def _note_cuts(outline: Outline, nodes: Iterable[Tensor], part: Part) -> None:
    """Let boxes know what of the rest of the graph they are joined to."""
    rest = [node for node in nodes if node not in part.tensors]
    readers = Counter(src for node in rest for src in dict.fromkeys(node.srcs))
    for box in outline.boxes:
        box.is_marked = any(tensor in part.marked for tensor in box.tensors)
        box.n_cut_readers = readers[box.tensor] if part.is_excerpt else 0
        for k, src in enumerate(box.tensor.srcs):
            if src not in part.tensors:
                name = common_name([tensor.srcs[k].name for tensor in box.tensors])
                box.cut_sources.append(name or src.label)


def _number(outline: Outline) -> None:
    drawn = sorted(outline.boxes, key=lambda box: LANES.index(box.lane))
    for number, box in enumerate(drawn, 1):
        box.number = number


def _frame_kernels(outline: Outline, groups: Iterable[Task]) -> None:
    """Boxes whose nodes run as one kernel, framed where they stand together."""
    boxes = {tensor: box for box in outline.boxes for tensor in box.tensors}
    framed: set[Box] = set()
    for group in groups:
        members = list(dict.fromkeys(boxes[node] for node in group.nodes if node in boxes))
        if len(members) < 2 or framed.intersection(members):
            continue
        framed.update(members)
        if len({box.spot for box in members}) == 1:
            outline.kernels.append(members)
        else:
            for box in members:
                box.partners = [other for other in members if other is not box]
