"""What the ops of pooling share: geometry, windows one by one, settings, draws, cost."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.windows import Windows
from yupana.graphlib.op import REGISTRY, Array, Cost, Draw, ErrorSample
from yupana.graphlib.ops._rules import need_axes, need_float
from yupana.graphlib.ops._windows import Sizes, fitting_places, per_axis
from yupana.graphlib.tensor import Tensor


def geometry(shape: tuple[int, ...], p: Any) -> Windows:
    """Where the windows of planes lie, by a node's parameters."""
    return Windows((shape[-2], shape[-1]), p["window"], p["stride"], p["padding"])


def each_window(x: Array, p: dict[str, Any]) -> Iterator[tuple[tuple[int, int], Any, int]]:
    """For each window its place, its part within the planes, and what its sum is divided by."""
    windows = geometry(x.shape, p)
    for place in np.ndindex(windows.places):
        inside = []
        for n, i, k, s, before in zip(
            windows.plane, place, windows.size, windows.stride, windows.padding, strict=True
        ):
            first = i * s - before
            inside.append(slice(max(first, 0), min(first + k, n)))
        seen = math.prod(part.stop - part.start for part in inside)
        count = math.prod(windows.size) if p.get("count_padding") else seen
        yield (place[0], place[1]), (..., *inside), count


def flat(part: Array) -> Array:
    """The elements of each window along the last axis."""
    return part.reshape(*part.shape[:-2], math.prod(part.shape[-2:]))


def one_per_window(x: Array, p: dict[str, Any]) -> Array:
    """Zeros, one for each window of `x`."""
    return np.zeros((*x.shape[:-2], *geometry(x.shape, p).places))


def fit(
    name: str, x: Tensor, window: Sizes, stride: Sizes | None, padding: Sizes
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape of one element per window of `x`, and the settings."""
    sizes = per_axis(name, "window", window, 2, 1)
    p = {
        "window": sizes,
        "stride": per_axis(name, "stride", sizes if stride is None else stride, 2, 1),
        "padding": per_axis(name, "padding", padding, 2, 0),
    }
    if any(n >= k for n, k in zip(p["padding"], sizes, strict=True)):
        raise SettingError(
            f"{name}: got padding {p['padding']} for window {sizes}, want less than the window: "
            "a window may not lie outside altogether"
        )
    need_float(name, x)
    need_axes(name, x, 2)
    found = fitting_places(name, x.shape[-2:], sizes, {**p, "dilation": (1, 1)})
    return (*x.shape[:-2], *found), p


def kind_of(name: str, kind: str, count_padding: bool) -> dict[str, Any]:
    """What is made of each window, as parameters of a node."""
    if kind not in ("max", "avg"):
        raise SettingError(f"{name}: got kind {kind!r}, want 'max' or 'avg'")
    return {"kind": kind, "count_padding": bool(count_padding)}


def draw_windows(d: Draw) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of the planes and of the windows, and settings."""
    space, found = [], []
    p: dict[str, Any] = {"window": (), "stride": (), "padding": ()}
    for _ in range(2):
        k, stride = d.integer(1, 4), d.integer(1, 3)
        padding = d.integer(0, k - 1)
        n = max(k - 2 * padding, 1) + d.integer(0, 6)
        space.append(n)
        found.append((n + 2 * padding - k) // stride + 1)
        drawn = {"window": k, "stride": stride, "padding": padding}
        p = {key: (*values, drawn[key]) for key, values in p.items()}
    outer = d.choice([(), (2,), (1, 3), (2, 2), (0,)])
    return (*outer, *space), (*outer, *found), p


def planes_of(d: Draw, shape: tuple[int, ...]) -> Tensor:
    """Planes whose windows each have a largest element."""
    return d.floats(shape, -2.9, 3.0)  # a range of their own keeps NaN away


def errors_of(name: str) -> list[ErrorSample]:
    """Calls of an op of pooling that must fail."""

    def run(plane: ArrayLike, window: Sizes, padding: Sizes = 0, kind: str = "max") -> Tensor:
        x, record = tensor(plane), REGISTRY[name]
        if name == "pool_2d":
            return record(x, kind, window, padding=padding)
        first = x if name == "pool_2d_at" else tensor(np.ones((1, 1)))
        return record(first, x, *([] if name == "pool_2d_at" else [kind]), window, padding=padding)

    samples = [
        ErrorSample(lambda: run([[1, 2]], 1), DtypeError, "i32"),
        ErrorSample(lambda: run([1.0], 1), ShapeError, "at least 2 axes"),
        ErrorSample(lambda: run([[1.0]], (1, 2)), ShapeError, "does not fit"),
        ErrorSample(lambda: run([[1.0]], 0), SettingError, "window 0"),
        ErrorSample(lambda: run([[1.0]], 2, 2), SettingError, "less than the window"),
    ]
    if name != "pool_2d_at":
        samples.append(
            ErrorSample(lambda: run([[1.0]], 1, kind="mean"), SettingError, "'max' or 'avg'")
        )
    return samples


def work_of(y: Tensor) -> Cost:
    """One operation for each element of each window."""
    windows = min(y.size, y.srcs[0].size)
    return Cost.of(y, float(windows * math.prod(y.params["window"])))
