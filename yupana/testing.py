"""Hypothesis strategies for tests of ops and passes; `test` extra.

`arrays`, `calls` and `graphs` draw what their names say; docs/testing.md shows them at work.
`samplers` and `traces` are what they are made of, for tests that draw something else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.graphlib.op import Op, call
from yupana.graphlib.sampler import Sampler, draw_call, random_numbers, source_of, text_of
from yupana.graphlib.tensor import Tensor
from yupana.random_graphs import RandomGraph, draw_graph

__all__ = [
    "DrawnCall",
    "RandomGraph",
    "arrays",
    "calls",
    "draw_graph",
    "graphs",
    "samplers",
    "traces",
]


def samplers(**options: Any) -> Any:
    """Strategy of samplers (`yupana.graphlib.sampler.Sampler`, with its options).

    Whatever a test draws from the sampler is drawn, and made smaller, by hypothesis.
    """
    from hypothesis import strategies as st

    def sampler(data: Any) -> Sampler:
        return Sampler(lambda low, high: data.draw(st.integers(low, high)), **options)

    return st.builds(sampler, st.data())


def traces(draw: Callable[[Sampler], object]) -> Any:
    """Strategy of the numbers that `draw` (an op's samples, say) asks a sampler for.

    `sampler.redraw` makes a call of them. Half are drawn by hypothesis one by one, which likes
    the simple and finds the smallest that fails; half come from a random generator, which does
    not stay near the simple.
    """
    from hypothesis import strategies as st

    numbers = st.integers(0, 2**32 - 1).map(np.random.default_rng).map(random_numbers)
    at_random = numbers.map(lambda drawn: _noted(draw, Sampler(drawn)))
    return _one_by_one(draw) | at_random


def _one_by_one(draw: Callable[[Sampler], object]) -> Any:
    return _drawn(lambda d: _noted(draw, d))


def _noted(draw: Callable[[Sampler], object], sampler: Sampler) -> list[int]:
    draw(sampler)
    return sampler.trace


def arrays(
    shape: tuple[int, ...] | None = None,
    low: float = -3.0,
    high: float = 3.0,
    dtypes: tuple[str, ...] = ("f32",),
    layouts: tuple[str, ...] = ("contiguous", "transposed", "sliced", "offset"),
) -> Any:
    """Strategy of tensors by domain and layout.

    Args:
        shape: None draws up to four axes, some of them empty and a few long.
        low, high: the domain; its ends, and 0 if it is inside, come more often.
        dtypes, layouts: to choose among. Elements around a view are NaN.
    """
    from hypothesis import note

    def made(d: Sampler) -> Tensor:
        sizes = d.shape(min_axes=0) if shape is None else shape
        tensor = d.floats(sizes, low, high, dtypes, layouts)
        note(_Written(tensor))
        return tensor

    return _drawn(made)


@dataclass(frozen=True)
class _Written:
    """A tensor of the failing example as source, worked out only if it is shown."""

    tensor: Tensor

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"drawn: {text_of(self.tensor)}")


@dataclass(frozen=True, repr=False)
class DrawnCall:
    """A call of an op; as text it is the source of the call."""

    op: Op[Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def record(self) -> Tensor:
        """The tensor that the call records."""
        return self.op(*self.args, **self.kwargs)

    def __repr__(self) -> str:
        return source_of(self.op, call(*self.args, **self.kwargs))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would list the fields


def calls(op: Op[Any], **options: Any) -> Any:
    """Strategy of calls of an op (`DrawnCall`), as its samples draw them.

    Args:
        options: of `yupana.graphlib.sampler.Sampler`, such as dtype="f64".
    """

    def made(d: Sampler) -> DrawnCall:
        drawn = draw_call(op, d)
        return DrawnCall(op, drawn.args, dict(drawn.kwargs))

    return _drawn(made, **options)


def graphs() -> Any:
    """Strategy of random graphs (`RandomGraph`): a dozen ops at most, some parameters, a loss."""
    return _drawn(draw_graph)


def _drawn(draw: Callable[[Sampler], Any], **options: Any) -> Any:
    """Strategy of what `draw` returns; hypothesis finds, and shows, the smallest that fails."""
    from hypothesis import strategies as st

    @st.composite
    def value(choose: Any) -> Any:
        return draw(Sampler(lambda low, high: choose(st.integers(low, high)), **options))

    return value()
