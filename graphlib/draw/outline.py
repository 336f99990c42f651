"""What a picture of a graph shows: boxes and arrows, with repeated layers drawn once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from yupana.graphlib.draw.fold import Folding, find_layers
from yupana.graphlib.draw.select import Part
from yupana.graphlib.fusion import find_groups
from yupana.graphlib.graph import Graph
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor

# Kinds of boxes, in the order of the legend.
PARAM, INPUT, DATA = "parameter", "input", "constant or frozen weight"
FORWARD, BACKWARD, GRADIENT = "forward", "backward", "gradient of a parameter"
RECOMPUTED, WRITE, VIEW = "recomputed", "writes in place", "view"
KINDS = (INPUT, PARAM, DATA, FORWARD, VIEW, BACKWARD, GRADIENT, RECOMPUTED, WRITE)

# Parts of a picture that stand side by side.
FORWARD_LANE, AGAIN_LANE, BACKWARD_LANE, UPDATE_LANE = "forward", "again", "backward", "update"
LANES = (FORWARD_LANE, AGAIN_LANE, BACKWARD_LANE, UPDATE_LANE)

_FEW_CROSSINGS = 12  # arrows between lanes that the eye can still follow
_MOST_ARROWS = 6  # from one box, or to one


@dataclass(eq=False, slots=True)
class Box:
    """One node of the picture, and all the tensors it stands for."""

    kind: str
    lane: str
    run: int | None  # the frame of repeated layers it stands in
    tensors: list[Tensor]  # one of each copy of a layer
    is_view: bool = False
    is_output: bool = False
    is_sum: bool = False  # its tensors are the additions of one sum, not copies
    number: int = 0
    before: list[Box] = field(default_factory=list)  # joined to it: what only it reads, in order
    data: list[Box] = field(default_factory=list)  # leaves that only it reads
    # What it reads without an arrow, each with the views through which it does.
    reads: list[tuple[Box, list[Box]]] = field(default_factory=list)
    feeds: list[Box] = field(default_factory=list)  # in the next copy of its layer
    partners: list[Box] = field(default_factory=list)  # in other lanes, run by the same kernel
    is_marked: bool = False  # asked for by name
    # In a picture of a part: what it reads outside of it, and how many read its first tensor there.
    cut_sources: list[str] = field(default_factory=list)
    n_cut_readers: int = 0

    @property
    def spot(self) -> tuple[str, str, int | None]:
        """What boxes have in common that can be one."""
        return (self.kind, self.lane, self.run)

    @property
    def tensor(self) -> Tensor:
        """The first that it stands for."""
        return self.tensors[0]

    @property
    def ops(self) -> list[str]:
        """The ops it stands for, of a chain of views from first to last."""
        names = [box.tensor.op.name for box in [*self.before, self] if box.tensor.op]
        return [f"{names[0]} × {len(self.tensors)}"] if self.is_sum else names

    @property
    def is_apart(self) -> bool:
        """Whether it must be a box of its own, not a line of another."""
        return self.is_output or self.is_marked or self.n_cut_readers > 0

    @property
    def name(self) -> str:
        """The user's name of it; a number that differs from copy to copy is a star."""
        return common_name([tensor.name for tensor in self.tensors])


@dataclass(slots=True)
class Outline:
    """The boxes in order of recording, the arrows between them, and what is framed."""

    boxes: list[Box]
    arrows: list[tuple[Box, Box]]
    copies: list[int]  # how many layers each run stands for
    kernels: list[list[Box]] = field(default_factory=list)  # boxes of a spot that run as one


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
    _write_constants_into_readers(outline)
    _join_chains(outline)
    _shorten_crossings(outline)
    _number(outline)
    if fuse:
        _frame_kernels(outline, find_groups(nodes, graph.outputs))
    return outline


def common_name(names: Sequence[str]) -> str:
    """One name for several that differ in numbers: blk.0.wq, blk.1.wq are blk.*.wq.

    >>> common_name(["blk.0.w2", "blk.1.w2"]), common_name(["a", "b"])
    ('blk.*.w2', '')
    """
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(part) for part in parts}) != 1:
        return ""
    columns = list(zip(*parts, strict=True))
    if any(len(set(column)) > 1 for column in columns[::2]):
        return ""
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


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


def _write_constants_into_readers(outline: Outline) -> None:
    """Leaves that one box reads, such as AdamW's moments, are a line of that box."""
    readers = _readers(outline)
    gone = set()
    for box in outline.boxes:
        named_weight = box.lane == FORWARD_LANE and box.name
        if box.kind == DATA and len(readers[box]) == 1 and not (named_weight or box.is_apart):
            readers[box][0].data.append(box)
            gone.add(box)
    _remove(outline, gone)


def _join_chains(outline: Outline) -> None:
    """A chain of views that nothing else reads is one box, and so is one of steps in an update."""
    readers = _readers(outline)
    n_sources = Counter(reader for _, reader in outline.arrows)
    sources = {
        box: source
        for source, box in outline.arrows
        if box.is_view or (_is_small_step(box) and n_sources[box] == 1)
    }
    gone = set()
    for box in outline.boxes:
        is_link = box.is_view or box in sources
        if not is_link or box.is_apart or box.feeds or len(readers[box]) != 1:
            continue
        reader = readers[box][0]
        alike = (reader.spot, reader.is_view) == (box.spot, box.is_view)
        if alike and sources.get(reader) is box:
            reader.before = [*box.before, box]
            reader.data += box.data
            reader.cut_sources = box.cut_sources
            gone.add(box)
            del sources[reader]
            if box in sources:
                source = sources[reader] = sources[box]
                readers[source] = [reader if other is box else other for other in readers[source]]
    _remove(outline, gone)
    joined = [box for box in outline.boxes if box.before]
    outline.arrows += [(sources[box], box) for box in joined if box in sources]


def _is_small_step(box: Box) -> bool:
    """Whether it only prepares an update, as the squares whose sum is a gradient's norm."""
    is_plain = box.kind == FORWARD and not (box.is_view or box.is_sum or box.name or box.data)
    return is_plain and box.lane == UPDATE_LANE


def _readers(outline: Outline) -> dict[Box, list[Box]]:
    readers: dict[Box, list[Box]] = defaultdict(list)
    for source, reader in outline.arrows:
        readers[source].append(reader)
    return readers


def _remove(outline: Outline, gone: set[Box]) -> None:
    outline.boxes = [box for box in outline.boxes if box not in gone]
    outline.arrows = [(a, b) for a, b in outline.arrows if a not in gone and b not in gone]


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


def _shorten_crossings(outline: Outline) -> None:
    """Where arrows would be too many to follow, boxes say the numbers of what they read."""
    fan_out = Counter(source for source, _ in outline.arrows)
    fan_in = Counter(reader for _, reader in outline.arrows)
    crossing = {(a, b) for a, b in outline.arrows if a.lane != b.lane}
    shortened = crossing if len(crossing) > _FEW_CROSSINGS else set()
    shortened |= {
        (a, b)
        for a, b in outline.arrows
        if max(fan_out[a], fan_in[b]) > _MOST_ARROWS
        or (a.tensor.is_leaf and a.lane == UPDATE_LANE and fan_out[a] > 1)
    }
    for source, reader in outline.arrows:
        if (source, reader) in shortened:
            reader.reads.append((source, []))
    outline.arrows = [arrow for arrow in outline.arrows if arrow not in shortened]
    _write_views_into_readers(outline)


def _write_views_into_readers(outline: Outline) -> None:
    """A view without an arrow to it is a word of its reader's list."""
    readers = _readers(outline)
    reached = {box for _, box in outline.arrows}
    gone = set()
    for box in outline.boxes:
        inner = box.is_view and not (box.is_apart or box.feeds or box.data or box.cut_sources)
        if inner and box not in reached and len(box.reads) == len(readers[box]) == 1:
            source, views = box.reads[0]
            readers[box][0].reads.append((source, [*views, *box.before, box]))
            gone.add(box)
    _remove(outline, gone)
