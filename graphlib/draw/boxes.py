"""Boxes and arrows: what a picture of a graph consists of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from yupana.graphlib.tensor import Tensor

# Kinds of boxes, in the order of the legend.
PARAM, INPUT, DATA = "parameter", "input", "constant or frozen weight"
FORWARD, BACKWARD, GRADIENT = "forward", "backward", "gradient of a parameter"
RECOMPUTED, WRITE, VIEW = "recomputed", "writes in place", "view"
KINDS = (INPUT, PARAM, DATA, FORWARD, VIEW, BACKWARD, GRADIENT, RECOMPUTED, WRITE)

# Parts of a picture that stand side by side.
FORWARD_LANE, AGAIN_LANE, BACKWARD_LANE, UPDATE_LANE = "forward", "again", "backward", "update"
LANES = (FORWARD_LANE, AGAIN_LANE, BACKWARD_LANE, UPDATE_LANE)


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
