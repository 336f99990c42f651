"""Repeated layers of a graph, found from its structure.

Nodes in the order of recording are a text whose letters are op, shape, dtype and parameters. A
layer repeated is a piece of text repeated, whose copies are wired alike: that is checked source
by source. Clones made by gradient checkpointing follow what they are clones of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.tensor import Tensor

Codes = NDArray[np.int64]

_LEAST_SAVED = 6  # nodes; folding fewer hides more than it saves
_CANDIDATES = 24  # repetitions whose wiring is looked at, the longest first
_LEAST_SUM = 5  # additions; fewer are drawn one by one
_SHIFTS = 64  # places tried for the cuts between copies


class Place(NamedTuple):
    """Where a tensor stands: in which run, in which of its copies, at which position."""

    run: int
    copy: int
    at: Hashable  # index of a node; for a leaf the index of its first reader and of the source

    @property
    def slot(self) -> Hashable:
        """The same in every copy."""
        return (self.run, self.at)


class _Span(NamedTuple):
    start: int
    period: int
    copies: int

    @property
    def saved(self) -> int:
        return self.period * (self.copies - 1)


@dataclass(slots=True)
class Folding:
    """The runs of a graph: `copies[r]` layers in run r, and each folded tensor's place.

    `sums` has the additions of every long sum, each with the last of them.
    """

    copies: list[int] = field(default_factory=list)
    places: dict[Tensor, Place] = field(default_factory=dict)
    sums: dict[Tensor, Tensor] = field(default_factory=dict)

    def group(self, tensor: Tensor) -> Hashable:
        """The same for tensors that one box of the picture stands for."""
        if tensor in self.sums:
            return self.sums[tensor]
        place = self.places.get(tensor)
        if place is None:
            return tensor
        return (place.run, place.at, tensor.role == "recomputed")

    def narrowed(self, part: Collection[Tensor]) -> Folding:
        """The folding of a part of the graph: copies stay together that have the same in it."""
        inside: dict[tuple[int, int], set[Hashable]] = defaultdict(set)
        for tensor, place in self.places.items():
            if tensor in part:
                inside[place.run, place.copy].add(self.group(tensor))
        alike = Counter((run, frozenset(found)) for (run, _), found in inside.items())
        kept: dict[int, frozenset[Hashable]] = {}
        for run, found in sorted(alike, key=lambda key: (alike[key], len(key[1]))):
            kept[run] = found
        places = {
            tensor: place
            for tensor, place in self.places.items()
            if inside.get((place.run, place.copy)) == kept.get(place.run)
        }
        return Folding(self.copies, places, self.sums)


def find_layers(nodes: Sequence[Tensor]) -> Folding:
    """Find runs of identical layers among the nodes of a graph."""
    recorded = sorted((n for n in nodes if n.role != "recomputed"), key=lambda n: n.sequence)
    origins = find_origins(nodes, recorded)
    sums = find_sums(nodes)
    folding = _Finder([node for node in recorded if node not in sums], origins).find()
    folding.sums = sums
    for clone, origin in origins.items():
        if origin in folding.places:
            folding.places[clone] = folding.places[origin]
    return folding


def find_sums(nodes: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Additions whose results only the next addition reads, with the last one of each sum."""
    readers: dict[Tensor, list[Tensor]] = defaultdict(list)
    for node in nodes:
        for src in node.srcs:
            readers[src].append(node)
    last: dict[Tensor, Tensor] = {}
    for node in reversed(nodes):  # readers before what they read
        if node.op is None or node.op.name != "add" or node.name or node.role == "recomputed":
            continue
        last[node] = node
        reader = readers[node][0] if len(readers[node]) == 1 else None
        if reader in last and _letter(reader) == _letter(node):
            last[node] = last[reader]
    sizes = Counter(last.values())
    return {node: end for node, end in last.items() if sizes[end] >= _LEAST_SUM}


def find_origins(nodes: Sequence[Tensor], recorded: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """What each recomputed node is a clone of: the node of the same op on the same sources."""
    clones = [n for n in nodes if n.role == "recomputed"]  # in evaluation order: sources first
    if not clones:
        return {}
    originals: dict[Hashable, list[Tensor]] = defaultdict(list)
    for node in recorded:
        if not node.role:
            originals[_computation(node, node.srcs)].append(node)
    origins: dict[Tensor, Tensor] = {}
    for clone in clones:
        key = _computation(clone, tuple(origins.get(src, src) for src in clone.srcs))
        if originals.get(key):
            found = originals[key]
            origins[clone] = found.pop(0) if len(found) > 1 else found[0]
    return origins


def _computation(node: Tensor, srcs: tuple[Tensor, ...]) -> Hashable:
    return (_letter(node), node.strides, node.view_offset, *map(id, srcs))


def _letter(tensor: Tensor) -> Hashable:
    """What two nodes, or two leaves, must have in common to stand for each other."""
    role = "" if tensor.role == "recomputed" else tensor.role
    if tensor.op is None:
        return (None, tensor.shape, tensor.dtype.name, tensor.is_param, tensor.is_input)
    # Parameters of views (offsets into a shared cache) may differ from layer to layer.
    params = "" if tensor.op.is_view else str(sorted(tensor.params.items()))
    return (tensor.op.name, tensor.shape, tensor.dtype.name, role, params)


class _Finder:
    """Takes the longest repetition whose copies are wired alike, then looks beside it."""

    def __init__(self, recorded: list[Tensor], origins: dict[Tensor, Tensor]) -> None:
        self.nodes = recorded
        self.origins = origins
        self.index = {node: k for k, node in enumerate(recorded)}
        numbers: dict[Hashable, int] = {}
        letters = (numbers.setdefault(_letter(n), len(numbers)) for n in recorded)
        self.codes: Codes = np.fromiter(letters, np.int64, len(recorded))
        self.folding = Folding()

    def find(self) -> Folding:
        todo = [(0, len(self.nodes))]
        while todo:
            # The longest first: what it settles helps to compare the others.
            todo.sort(key=lambda piece: piece[0] - piece[1])
            low, high = todo.pop(0)
            span = self._longest(low, high)
            if span is not None:
                self._take(span)
                todo += [(low, span.start), (span.start + span.period * span.copies, high)]
        return self.folding

    def _longest(self, low: int, high: int) -> _Span | None:
        best: _Span | None = None
        found = sorted(repetitions(self.codes[low:high]), key=lambda pair: -pair[0].saved)
        for span, slack in found[:_CANDIDATES]:
            if best is not None and span.saved <= best.saved:
                break
            cut = self._best_cut(span._replace(start=low + span.start), slack)
            if cut is not None and (best is None or cut.saved > best.saved):
                best = cut
        return best

    def _best_cut(self, span: _Span, slack: int) -> _Span | None:
        """The most copies wired alike, cut where the fewest values cross from one to the next."""
        shifted = [span._replace(start=span.start + k) for k in range(min(slack, _SHIFTS) + 1)]
        best: _Span | None = None
        for cut in sorted(shifted, key=self._crossing):
            part = self._alike(cut)
            if part is not None and (best is None or part.copies > best.copies):
                best = part
            if best is not None and best.copies == span.copies:
                break
        return best

    def _alike(self, span: _Span) -> _Span | None:
        """The longest part of `span` whose copies are wired alike and follow one another."""
        alike = [self._same_wiring(span, copy) for copy in range(span.copies - 1)]
        first, length = _longest_true(alike)
        part = _Span(span.start + first * span.period, span.period, length + 1)
        if length == 0 or part.saved < _LEAST_SAVED:
            return None
        return part

    def _same_wiring(self, span: _Span, copy: int) -> bool:
        """Whether this copy and the next are wired alike, and the next belongs behind this."""
        here = span.start + copy * span.period
        linked = False
        for at in range(span.period):
            a, b = self.nodes[here + at], self.nodes[here + span.period + at]
            if len(a.srcs) != len(b.srcs):
                return False
            for x, y in zip(a.srcs, b.srcs, strict=True):
                if not self._match(x, y, here, span, copy):
                    return False
                linked = linked or self._follows(x, y, here, span.period)
        return linked

    def _match(self, x: Tensor, y: Tensor, here: int, span: _Span, copy: int) -> bool:
        """Whether a node of this copy reads `x` as its like in the next copy reads `y`."""
        x, y = self.origins.get(x, x), self.origins.get(y, y)
        kx, ky = self.index.get(x, -1), self.index.get(y, -1)  # -1: a leaf
        there = here + span.period
        similar = x.shape == y.shape and x.dtype is y.dtype
        if ky >= there:  # inside the copy
            return ky - there == kx - here
        if ky >= here:  # from the copy before; the first copy gets it from anywhere
            return ky - here == kx - (here - span.period) if copy else similar and kx < here
        if x is y:
            return True
        px, py = self.folding.places.get(x), self.folding.places.get(y)
        slots = (px and px.slot, py and py.slot)
        if kx < 0 or ky < 0:
            return _letter(x) == _letter(y) and slots[0] == slots[1]
        if px and py and px.run == py.run:
            return slots[0] == slots[1] or copy == 0 or copy == span.copies - 2
        return similar

    def _follows(self, x: Tensor, y: Tensor, here: int, period: int) -> bool:
        """Whether `y` comes from the copy before, or from the next copy of an earlier run."""
        if not y.is_leaf and here <= self.index[self.origins.get(y, y)] < here + period:
            return True
        px, py = self.folding.places.get(x), self.folding.places.get(y)
        if px is None or py is None:
            return False
        return px.slot == py.slot and abs(px.copy - py.copy) == 1

    def _take(self, span: _Span) -> None:
        run = len(self.folding.copies)
        self.folding.copies.append(span.copies)
        places = self.folding.places
        readers: dict[Tensor, set[int]] = defaultdict(set)
        for copy, at, node in self._walk(span):
            places[node] = Place(run, copy, at)
            for src in node.srcs:
                readers[src].add(copy)
        for copy, at, node in self._walk(span):
            for k, src in enumerate(node.srcs):
                if src.is_leaf and len(readers[src]) == 1:
                    places.setdefault(src, Place(run, copy, (at, k)))

    def _walk(self, span: _Span) -> Iterator[tuple[int, int, Tensor]]:
        for copy in range(span.copies):
            for at in range(span.period):
                yield copy, at, self.nodes[span.start + copy * span.period + at]

    def _crossing(self, span: _Span) -> int:
        """How many values the second copy reads from the first, and how many layers it mixes."""
        cut = span.start + span.period
        read = {src for node in self.nodes[cut : cut + span.period] for src in node.srcs}
        mixed = {place[:2] for src in read if (place := self.folding.places.get(src))}
        layers = len(mixed) - len({run for run, _ in mixed})
        return layers + sum(span.start <= self.index.get(src, -1) < cut for src in read)


def repetitions(codes: Codes) -> Iterator[tuple[_Span, int]]:
    """Stretches that repeat a piece, and by how much the cuts between pieces can be shifted.

    >>> max(repetitions(np.array([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1])), key=lambda s: s[0].saved)
    (_Span(start=1, period=3, copies=3), 1)
    """
    n = len(codes)
    best = 0
    for period in range(1, n // 2 + 1):
        if n - period <= best // 2:
            break  # what follows saves less than half of what is known
        same = codes[period:] == codes[:-period]
        if int(same.sum()) < period:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            count, slack = divmod(end - start + period, period)
            span = _Span(start, period, count)
            if count > 1 and span.saved >= _LEAST_SAVED:
                best = max(best, span.saved)
                yield span, slack


def _longest_true(flags: list[bool]) -> tuple[int, int]:
    """Start and length of the longest stretch of True."""
    best, start = (0, 0), 0
    for k, flag in enumerate([*flags, False]):
        if not flag:
            if k - start > best[1]:
                best = (start, k - start)
            start = k + 1
    return best
