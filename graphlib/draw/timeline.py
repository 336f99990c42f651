"""The picture of a profile: what each thread does when, and which ops take the time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby

from yupana.graphlib.draw.families import FILLS, family_of
from yupana.graphlib.draw.svg import Svg, text_width
from yupana.graphlib.draw.text import format_flops, format_time
from yupana.graphlib.profile import Profile, Timing
from yupana.graphlib.watch import Call, Watched

_LEFT, _WIDTH, _RIGHT = 78, 890, 32  # of a row, and of the margin behind it
_ROW, _GAP = 36, 6
_EDGE, _DARK = "#33414F", FILLS["optimiser"]
_LABEL = 9.0  # points
_MANY = 100  # steps; with more, few names fit
_TICKS = 8  # on an axis, about
_OPS = 8  # in the list of those that take most time


def profile_svg(profile: Profile, title: str = "", zoom: tuple[float, float] | None = None) -> str:
    """The picture as the text of an SVG file; `zoom` in ms, see `draw_profile`."""
    run = profile.watched
    windows = [(0.0, max(run.ns, 1.0))]
    if zoom is not None:
        windows.append((zoom[0] * 1e6, zoom[1] * 1e6))
    elif len(run.tasks) > _MANY:
        windows.append((0.0, run.ns / 10))
    height = len(run.threads) * (_ROW + _GAP) + 62
    top = 60.0
    ops = [*profile.by_op().items()][:_OPS]
    svg = Svg(_LEFT + _WIDTH + _RIGHT, top + height * len(windows) + 18 * len(ops) + 62)
    _draw_heading(svg, profile, title)
    for number, window in enumerate(windows):
        if number:
            first = format_time(window[0]) if window[0] else "the start"
            text = f"enlarged: from {first} to {format_time(window[1])}"
            svg.text(_LEFT, top + 2, text, 12, font_weight="bold")
        _Timeline(svg, profile, top + 16, *window).draw()
        top += height
    top = _draw_key(svg, profile, top)
    _draw_ops(svg, profile, ops, top + 34)
    return str(svg)


class _Timeline:
    """A row of rectangles for each thread, against time from `begin` to `end` ns."""

    def __init__(self, svg: Svg, profile: Profile, top: float, begin: float, end: float) -> None:
        self.svg, self.top, self.begin, self.end = svg, top, begin, end
        self.profile = profile
        self.run: Watched = profile.watched

    def x(self, ns: float) -> float:
        """Where a time lies on the page; what is outside lies on the border."""
        inside = min(max(ns, self.begin), self.end)
        return _LEFT + _WIDTH * (inside - self.begin) / (self.end - self.begin)

    def draw(self) -> None:
        """The rows, the times at which threads meet, and the axis."""
        svg, threads = self.svg, self.run.threads
        bottom = self.top + len(threads) * (_ROW + _GAP)
        for number, calls in enumerate(threads):
            y = self.top + number * (_ROW + _GAP)
            svg.text(_LEFT - 8, y + _ROW / 2 + 4, f"thread {number}", text_anchor="end")
            svg.rect(_LEFT, y, _WIDTH, _ROW, fill="#F0F0EC")
            shown = [c for c in calls if c.end > self.begin and c.begin < self.end]
            for step, parts in groupby(shown, lambda call: call.step):
                self._draw_step(step, [*parts], y)
        for at in self._meetings():
            for edge in (self.top - 5, bottom - 6):
                svg.line(at, edge, at, edge + 5, stroke="#A30000", stroke_width=0.7)
        for ns, text in axis(self.begin, self.end):
            at = self.x(ns)
            svg.line(at, bottom, at, bottom + 4, stroke="#444444")
            svg.text(at, bottom + 16, text, text_anchor="middle", fill="#444444")

    def _meetings(self) -> Iterator[float]:
        starts: dict[int, float] = {}
        for call in (call for calls in self.run.threads for call in calls):
            starts[call.step] = min(starts.get(call.step, call.begin), call.begin)
        for step in self.run.meetings:
            if self.begin <= starts.get(step, math.inf) <= self.end:
                yield self.x(starts[step])

    def _draw_step(self, step: int, calls: list[Call], y: float) -> None:
        timing = self.profile.timings[self.run.tasks[step]]
        places = [(self.x(call.begin), self.x(call.end)) for call in calls]
        low, high = places[0][0], places[-1][1]
        if high - low < 4 * len(places):  # too narrow to see its pieces
            places = [(low, high)]
        fill = FILLS[family_of(timing.task)]
        width = 0.5 if high - low > 2 else 0.1
        with self.svg.group(_note(timing, calls)):
            for left, right in places:
                self.svg.rect(
                    left, y, max(right - left, 0.2), _ROW, fill=fill, stroke=_EDGE,
                    stroke_width=width,
                )  # fmt: skip
            self._write_name(timing.task.name, fill, low, high, y)

    def _write_name(self, name: str, fill: str, low: float, high: float, y: float) -> None:
        fitting = [n for n in (name, name.split("+")[0]) if text_width(n, _LABEL) < high - low]
        if fitting:
            colour = "#FFFFFF" if fill == _DARK else "#000000"
            halo = {"stroke": fill, "stroke_width": 3, "paint_order": "stroke"}
            place = {"text_anchor": "middle", "fill": colour, **halo}
            self.svg.text((low + high) / 2, y + _ROW / 2 + 3, fitting[0], _LABEL, **place)


def _note(timing: Timing, calls: list[Call]) -> str:
    busy = sum(call.end - call.begin for call in calls)
    lines = [f"{timing.task.name} {timing.task.nodes[-1].label}"]
    lines.append(f"{format_time(busy)} here, {format_time(timing.ns)} alone on one thread")
    if timing.task.cost.flops:
        lines.append(f"{format_flops(timing.task.cost.flops)}, {timing.gflops:.3g} GFLOP/s")
    return "\n".join(lines)


def axis(begin: float, end: float) -> list[tuple[float, str]]:
    """Round times from `begin` to `end` ns, with what is written there.

    >>> axis(0, 2000)[1], axis(3.1e6, 5.2e6)[0]
    ((500.0, '0.5 µs'), (3500000.0, '3.5 ms'))
    """
    unit, name = (1e6, "ms") if end >= 2e6 else (1e3, "µs")
    rough = (end - begin) / unit / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    first = math.ceil(begin / unit / step - 1e-9)
    last = math.floor(end / unit / step + 1e-9)
    return [(k * step * unit, f"{round(k * step, 9):g} {name}") for k in range(first, last + 1)]


def _draw_heading(svg: Svg, profile: Profile, title: str) -> None:
    run = profile.watched
    n, steps = len(run.threads), len(run.tasks)
    svg.text(_LEFT, 26, title or "One run", 17, font_weight="bold")
    said = f"{len(profile)} tasks in {steps} steps on {n} thread{'s' if n > 1 else ''}: "
    said += f"{format_time(run.ns)} in one call, with no Python in between"
    svg.text(_LEFT, 45, said, fill="#444444")


def _draw_key(svg: Svg, profile: Profile, y: float) -> float:
    """What the colours mean."""
    x = float(_LEFT)
    found = {family_of(timing.task) for timing in profile}
    for name, fill in FILLS.items():
        if name in found:
            svg.rect(x, y - 9, 14, 10, fill=fill, stroke=_EDGE, stroke_width=0.5)
            svg.text(x + 20, y, name)
            x += 20 + text_width(name, 11) + 22
    if profile.watched.meetings:
        svg.line(x + 5, y - 9, x + 5, y + 1, stroke="#A30000")
        svg.text(x + 14, y, "the threads meet")
    return y


def _draw_ops(svg: Svg, profile: Profile, ops: list[tuple[str, list[Timing]]], y: float) -> None:
    """The ops that take most time, each with a bar; times are those on one thread."""
    columns = (_LEFT + 366, _LEFT + 446, _LEFT + 516, _LEFT + 596, _LEFT + 666)
    heads = ("tasks", "time", "share", "GFLOP/s", "GB/s")
    svg.text(_LEFT, y, "by op, alone on one thread", font_weight="bold")
    for x, head in zip(columns, heads, strict=True):
        svg.text(x, y, head, text_anchor="end", fill="#444444")
    total = profile.ns or 1.0
    longest = max((sum(t.ns for t in timings) for _, timings in ops), default=1.0) or 1.0
    for row, (name, timings) in enumerate(ops, 1):
        at, ns = y + 18 * row, sum(t.ns for t in timings)
        flops, nbytes = (sum(getattr(t.task.cost, k) for t in timings) for k in ("flops", "nbytes"))
        cells = (
            str(len(timings)),
            format_time(ns),
            f"{100 * ns / total:.1f} %",
            f"{flops / ns:.3g}" if ns and flops else "",
            f"{nbytes / ns:.3g}" if ns else "",
        )
        svg.text(_LEFT, at, name if len(name) < 50 else name[:49] + "…")
        for x, cell in zip(columns, cells, strict=True):
            svg.text(x, at, cell, text_anchor="end")
        fill = FILLS[family_of(timings[0].task)]
        width = (_WIDTH - 690) * ns / longest
        svg.rect(_LEFT + 690, at - 9, width, 11, fill=fill, stroke=_EDGE, stroke_width=0.5)
