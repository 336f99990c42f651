"""The loss curve as an SVG picture, drawn here so that no plotting package is needed."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike

from yupana.graphlib.draw.svg import Svg, text_width
from yupana.models.formats import atomic_write

Points = Sequence[tuple[float, float]]  # (step, loss)

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 60, 52
# Colours and dashes: series are told apart in grey too.
_STYLES = (
    {"stroke": "#4C9BD3"},
    {"stroke": "#9E3A00", "stroke_dasharray": "7 3"},
    {"stroke": "#2E7D5B", "stroke_dasharray": "2 3"},
    {"stroke": "#4B2E63", "stroke_dasharray": "9 3 2 3"},
)
_MOST = 1000  # points drawn of a series


def draw_curve(path: str | PathLike[str], series: Mapping[str, Points], title: str = "") -> None:
    """Write loss against step as SVG, one line for each series.

    Series of more than about a thousand points are averaged to that many. Points that are not
    finite are left out.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "loss.svg"
    >>> draw_curve(path, {"training": [(0, 4.0), (1, 3.0), (2, 2.5)]}, "a run")
    >>> path.read_text().count("<polyline")
    1
    """
    finite = {name: [p for p in ps if math.isfinite(p[1])] for name, ps in series.items()}
    text = _curve({name: thinned(points) for name, points in finite.items() if points}, title)
    with atomic_write(path) as file:
        file.write(text.encode())


def _curve(series: Mapping[str, Points], title: str) -> str:
    every = [point for points in series.values() for point in points] or [(0.0, 0.0), (1.0, 1.0)]
    x_ticks = nice_ticks(min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = nice_ticks(min(y for _, y in every), max(y for _, y in every))
    svg, frame = Svg(_WIDTH, _HEIGHT), _Frame(x_ticks, y_ticks)
    svg.text(_LEFT, 26, title, 16, fill="#222222")
    _draw_grid(svg, frame, x_ticks, y_ticks)
    legend = float(_LEFT)
    for style, (name, points) in zip(_STYLES, series.items(), strict=False):
        places = [(frame.x(x), frame.y(y)) for x, y in points]
        svg.path(places, stroke_width=1.6, stroke_linejoin="round", **style)
        svg.rect(places[-1][0] - 3, places[-1][1] - 3, 6, 6, rx=3, fill=style["stroke"])
        label = f"{name}: {points[-1][1]:.3f}"
        svg.line(legend, 42, legend + 26, 42, stroke_width=2.4, **style)
        svg.text(legend + 32, 46, label, 13, fill="#333333")
        legend += 68 + text_width(label, 13)
    return str(svg)


class _Frame:
    """From steps and losses to places in the picture."""

    def __init__(self, x_ticks: list[float], y_ticks: list[float]) -> None:
        self.x0, self.x1 = x_ticks[0], x_ticks[-1]
        self.y0, self.y1 = y_ticks[0], y_ticks[-1]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * height


def _draw_grid(svg: Svg, frame: _Frame, x_ticks: list[float], y_ticks: list[float]) -> None:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in y_ticks:
        y = frame.y(value)
        svg.line(_LEFT, y, right, y, stroke="#E3E3E3")
        svg.text(_LEFT - 8, y + 4, f"{value:g}", 12, text_anchor="end", fill="#555555")
    for value in x_ticks:
        x = frame.x(value)
        svg.line(x, bottom, x, bottom + 5, stroke="#999999")
        svg.text(x, bottom + 20, f"{value:g}", 12, text_anchor="middle", fill="#555555")
    svg.line(_LEFT, bottom, right, bottom, stroke="#999999")
    middle = (_LEFT + right) / 2
    svg.text(middle, _HEIGHT - 12, "step", 13, text_anchor="middle", fill="#555555")


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers that span from below `low` to above `high`.

    >>> nice_ticks(0.3, 4.1)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def thinned(points: Points, most: int = _MOST) -> Points:
    """At most so many points: means of neighbours.

    >>> thinned([(1, 2.0), (2, 4.0), (3, 5.0)], most=2)
    [(1.5, 3.0), (3.0, 5.0)]
    """
    size = -(-len(points) // most)
    if size <= 1:
        return points
    groups = [points[k : k + size] for k in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
