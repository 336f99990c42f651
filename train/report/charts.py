"""Curves as places on a page: percent of the width and height of a frame, with ticks and notes.

The page stretches the frame to the width there is; text stands beside it and keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.limits import Limits
from yupana.train.curve import Points, nice_ticks, thinned
from yupana.train.report.measured import HotNode

_MOST = 400  # points of a line
_COLUMNS = 60  # across a chart, each with a note under the pointer
SCALE = 1000  # what the whole width and height of a frame are


@dataclass(frozen=True)
class Line:
    """A curve, or a limit."""

    name: str
    style: str  # of the page: first, second or limit
    points: str  # of an SVG polyline
    last: str = ""  # value where it ends


@dataclass(frozen=True)
class Tick:
    """A round number, and where it stands in percent of the frame."""

    place: float
    text: str


@dataclass(frozen=True)
class Column:
    """A strip of a chart with what shows under the pointer."""

    x: float
    width: float
    note: str


@dataclass(frozen=True)
class Dot:
    """A node in a roofline chart, in percent from the left and from below."""

    number: int
    x: float
    y: float
    note: str


@dataclass(frozen=True)
class Label:
    """Text at a place of a chart, in percent from the left and from below."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A frame with all that is drawn in it."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    columns: list[Column] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


def curves(
    title: str, y_label: str, series: Mapping[str, Points], show: Callable[[float], str]
) -> Chart | None:
    """A chart of at most two curves against the step; None without points.

    Args:
        show: a value as text.

    >>> chart = curves("loss", "nats", {"training": [(1, 4.0), (2, 3.0)]}, str)
    >>> [tick.text for tick in chart.y_ticks], chart.lines[0].last
    (['3', '3.2', '3.4', '3.6', '3.8', '4'], '3.0')
    """
    drawn = {name: points for name, points in series.items() if points}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return None
    low, high = min(y for _, y in every), max(y for _, y in every)
    y_ticks = nice_ticks(low, high, 5)
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    x_ticks = nice_ticks(min(first, 0.0) if first <= 1 else first, last, 6)
    x_axis, y_axis = _Axis(x_ticks[0], max(last, x_ticks[0] + 1)), _Axis(y_ticks[0], y_ticks[-1])
    lines = [
        Line(name, style, _polyline(thinned(points, _MOST), x_axis, y_axis), show(points[-1][1]))
        for style, (name, points) in zip(("first", "second"), drawn.items(), strict=False)
    ]
    return Chart(
        title=title,
        x_label="step",
        y_label=y_label,
        lines=lines,
        x_ticks=[Tick(100 * x_axis.part(x), f"{x:g}") for x in x_ticks if x <= x_axis.end],
        y_ticks=[Tick(100 * y_axis.part(y), show(y) if high >= 1e4 else f"{y:g}") for y in y_ticks],
        columns=_columns(drawn, x_axis, show),
    )


def _columns(
    series: Mapping[str, Points], axis: _Axis, show: Callable[[float], str]
) -> list[Column]:
    """What the curves are at places across the chart."""
    steps = sorted({x for points in series.values() for x, _ in points})
    size = max(1, -(-len(steps) // _COLUMNS))
    found = []
    for k in range(0, len(steps), size):
        group = steps[k : k + size]
        left = axis.part(group[0]) if k else 0.0
        right = axis.part(steps[k + size]) if k + size < len(steps) else 1.0
        said = [f"step {group[0]:g}" + (f" to {group[-1]:g}" if len(group) > 1 else "")]
        for name, points in series.items():
            values = [y for x, y in points if group[0] <= x <= group[-1]]
            if values:
                said.append(f"{name} {show(sum(values) / len(values))}")
        found.append(Column(SCALE * left, SCALE * (right - left), "\n".join(said)))
    return found


def roofline(nodes: Sequence[HotNode], limits: Limits) -> Chart | None:
    """Speed of nodes against their work for each byte, below what the machine can do."""
    shown = [(k, node) for k, node in enumerate(nodes, 1) if node.gflops > 0]
    if not shown:
        return None
    intensities = [node.intensity for _, node in shown]
    low = 10.0 ** math.floor(math.log10(min(*intensities, 0.5)))
    high = 10.0 ** math.ceil(math.log10(max(*intensities, 50.0)))
    slowest = min(node.gflops for _, node in shown if node.gflops)
    fastest = max(limits.gflops, *(node.gflops for _, node in shown))
    bottom = 10.0 ** math.floor(math.log10(min(slowest, limits.gflops / 20)))
    top = 10.0 ** math.ceil(math.log10(fastest * 1.2))
    x_axis, y_axis = _Axis(low, high, is_log=True), _Axis(bottom, top, is_log=True)
    peak = limits.gflops
    lines = [_roof("multiply-adds", [(low, peak), (high, peak)], x_axis, y_axis)]
    at = 100 * y_axis.part(peak)
    labels = [Label(0.0, at, f"multiply-adds {peak:.3g} GFLOP/s")]
    for speed, along in ((limits.speeds[0], 0.6), (limits.speeds[-1], 0.25)):
        start, corner = max(low, bottom / speed.best), peak / speed.best
        name = f"{format_bytes(speed.nbytes)} at {speed.best:.3g} GB/s"
        ends = [(x, x * speed.best) for x in (start, corner)]
        lines.append(_roof(name, ends, x_axis, y_axis))
        x = start * (corner / start) ** along  # where the label hangs
        place = 100 * x_axis.part(x), 100 * y_axis.part(x * speed.best)
        labels.append(Label(place[0] + 1, place[1] - 9, name))
    dots = [
        Dot(
            k,
            100 * x_axis.part(node.intensity),
            100 * y_axis.part(node.gflops),
            f"{k}. {node.op}\n{node.what}\n{node.gflops:.3g} GFLOP/s, {node.gb_per_s:.3g} GB/s",
        )
        for k, node in shown
    ]
    return Chart(
        title="What is reached, and what could be",
        x_label="FLOP for each byte",
        y_label="GFLOP/s",
        lines=lines,
        x_ticks=[Tick(100 * x_axis.part(x), f"{x:g}") for x in _powers(low, high)],
        y_ticks=[Tick(100 * y_axis.part(y), f"{y:g}") for y in _powers(bottom, top)],
        dots=dots,
        labels=labels,
    )


def _roof(name: str, ends: Points, x_axis: _Axis, y_axis: _Axis) -> Line:
    return Line(name, "limit", _polyline(ends, x_axis, y_axis), f"{ends[-1][1]:.3g}")


def _powers(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), round(math.log10(high))
    return [10.0**k for k in range(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    """From values to parts of a length."""

    start: float
    end: float
    is_log: bool = False

    def part(self, value: float) -> float:
        start, end = self.start, self.end
        if self.is_log:
            start, end, value = math.log(start), math.log(end), math.log(value)
        return min(max((value - start) / (end - start), 0.0), 1.0)


def _polyline(points: Points, x_axis: _Axis, y_axis: _Axis) -> str:
    places = ((SCALE * x_axis.part(x), SCALE * (1 - y_axis.part(y))) for x, y in points)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
