"""The few SVG elements that pictures are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from xml.sax.saxutils import quoteattr

from yupana.graphlib.draw.text import escape

FONT = "Helvetica, Arial, sans-serif"


class Svg:
    """An SVG picture of `width` by `height` points on white.

    Attributes of elements are keyword arguments; an underscore stands for the dash in their name.

    >>> svg = Svg(20, 10)
    >>> svg.rect(1, 2, 3, 4, fill="#fff")
    >>> "<rect x='1' y='2' width='3' height='4' fill=" in str(svg).replace('"', "'")
    True
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []
        self.rect(0, 0, width, height, fill="#FFFFFF")

    def rect(
        self, x: float, y: float, width: float, height: float, note: str = "", **style: object
    ) -> None:
        """A rectangle; `note` shows under the pointer."""
        self._add("rect", note, x=x, y=y, width=width, height=height, **style)

    def line(self, x1: float, y1: float, x2: float, y2: float, **style: object) -> None:
        """A straight line."""
        self._add("line", "", x1=x1, y1=y1, x2=x2, y2=y2, **style)

    def path(self, points: list[tuple[float, float]], **style: object) -> None:
        """A line through points."""
        steps = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polyline", "", points=steps, fill="none", **style)

    def text(self, x: float, y: float, text: str, size: float = 11, **style: object) -> None:
        """Text whose base line starts at (x, y), unless `text_anchor` says else."""
        attributes = _attributes({"x": x, "y": y, "font_size": size, **style})
        self._parts.append(f"<text{attributes}>{escape(text)}</text>")

    @contextmanager
    def group(self, note: str) -> Iterator[None]:
        """What is drawn within it belongs together; `note` shows under the pointer."""
        self._parts.append(f"<g><title>{escape(note)}</title>")
        yield
        self._parts.append("</g>")

    def _add(self, tag: str, note: str, **attributes: object) -> None:
        inner = f"<title>{escape(note)}</title>" if note else ""
        self._parts.append(f"<{tag}{_attributes(attributes)}>{inner}</{tag}>")

    def __str__(self) -> str:
        size = f'width="{_number(self.width)}" height="{_number(self.height)}"'
        box = f'viewBox="0 0 {_number(self.width)} {_number(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} font-family="{FONT}">'
        return "\n".join([head, *self._parts, "</svg>\n"])


def _attributes(values: dict[str, object]) -> str:
    return "".join(
        f" {name.replace('_', '-')}={quoteattr(_number(value))}" for name, value in values.items()
    )


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text_width(text: str, size: float) -> float:
    """About how wide a line of text is, in points."""
    return 0.56 * size * len(text)


def ticks(end: float, wanted: int, steps: tuple[float, ...] = (1, 2, 5, 10)) -> list[float]:
    """Round numbers from 0 to `end`, about as many as wanted.

    >>> ticks(47, 5)
    [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    if end <= 0:
        return [0]
    least = end / max(wanted, 1)
    scale = 1.0
    while scale * steps[-1] < least:
        scale *= steps[-1]
    step = next(scale * s for s in steps if scale * s >= least)
    return [k * step for k in range(int(end / step) + 1)]
