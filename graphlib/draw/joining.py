"""Fewer boxes and arrows: what can be a line of another box, or of its list, is."""

from __future__ import annotations

from collections import Counter, defaultdict

from yupana.graphlib.draw.boxes import DATA, FORWARD, FORWARD_LANE, UPDATE_LANE, Box, Outline

_FEW_CROSSINGS = 12  # arrows between lanes that the eye can still follow
_MOST_ARROWS = 6  # from one box, or to one


def write_constants_into_readers(outline: Outline) -> None:
    """Leaves that one box reads, such as AdamW's moments, are a line of that box."""
    readers = _readers(outline)
    gone = set()
    for box in outline.boxes:
        named_weight = box.lane == FORWARD_LANE and box.name
        if box.kind == DATA and len(readers[box]) == 1 and not (named_weight or box.is_apart):
            readers[box][0].data.append(box)
            gone.add(box)
    _remove(outline, gone)


def join_chains(outline: Outline) -> None:
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


def shorten_crossings(outline: Outline) -> None:
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
