"""What rules of windows share: settings per axis, geometry, operands as planes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.windows import Windows, places
from yupana.graphlib.op import Operand
from yupana.graphlib.ops._rules import view

Sizes = int | tuple[int, ...]


def per_axis(name: str, what: str, value: Sizes, axes: int, least: int) -> tuple[int, ...]:
    """A setting as one number for each of `axes` axes; a single number stands for all."""
    sizes = (value,) * axes if isinstance(value, int | np.integer) else tuple(value)
    if len(sizes) != axes or any(not isinstance(n, int | np.integer) or n < least for n in sizes):
        raise SettingError(
            f"{name}: got {what} {value}, want a number of at least {least}, or {axes} of them"
        )
    return tuple(int(n) for n in sizes)


def per_axes(
    name: str, axes: int, stride: Sizes, padding: Sizes, dilation: Sizes
) -> dict[str, tuple[int, ...]]:
    """The settings of windows along `axes` axes, as parameters of a node."""
    return {
        "stride": per_axis(name, "stride", stride, axes, 1),
        "padding": per_axis(name, "padding", padding, axes, 0),
        "dilation": per_axis(name, "dilation", dilation, axes, 1),
    }


def geometry(space: tuple[int, ...], window: tuple[int, ...], p: Mapping[str, Any]) -> Windows:
    """The geometry of a plane; a signal is a plane of one row."""

    def two(sizes: tuple[int, ...], other: int) -> tuple[int, int]:
        return (other, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

    return Windows(
        two(space, 1),
        two(window, 1),
        two(p["stride"], 1),
        two(p["padding"], 0),
        two(p["dilation"], 1),
    )


def fitting_places(
    name: str, space: tuple[int, ...], window: tuple[int, ...], p: Mapping[str, Any]
) -> tuple[int, ...]:
    """How many windows there are along each axis; raises where there is none."""
    found = tuple(
        places(*sizes)
        for sizes in zip(space, window, p["stride"], p["padding"], p["dilation"], strict=True)
    )
    if any(n < 1 for n in found) or 0 in space:
        raise ShapeError(
            f"{name}: window does not fit: got {window}, dilation {p['dilation']}, for "
            f"{space} with padding {p['padding']}, want at least one place for it"
        )
    return found


def planes(x: Operand, axes: int, before: bool) -> View:
    """An operand with N, and with the axis of one row that a signal lacks, as 4 axes.

    `before`: planes stand behind the channels (N, C, H, W); else before them (N, H, W, C).
    """
    v = view(x)
    shape, strides = list(v.shape), list(v.strides)
    if axes == 1:
        at = len(shape) - (1 if before else 2)
        shape.insert(at, 1)
        strides.insert(at, 0)
    if len(shape) == 3:
        shape.insert(0, 1)
        strides.insert(0, 0)
    return View(v.address, tuple(shape), tuple(strides), v.code, v.itemsize)
