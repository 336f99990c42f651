"""Windows of signals and images copied into rows, and rows added up where windows were.

Convolutions are matrix products of these; see convolution.py.
"""

import math
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels import windows as kernels
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.windows import Windows
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_float
from yupana.graphlib.ops._windows import (
    Sizes,
    fitting_places,
    geometry,
    per_axes,
    per_axis,
    planes,
)
from yupana.graphlib.tensor import Tensor


def _lower_im2col(site: Site) -> list[Step]:
    p, axes = site.params, len(site.params["window"])
    dst, src = planes(site.dst, axes, False), planes(site.srcs[0], axes, True)
    return kernels.im2col(dst, src, geometry(site.srcs[0].shape[-axes:], p["window"], p))


def _lower_im2col_back(site: Site) -> list[Step]:
    p, axes = site.params, len(site.params["window"])
    dst, grad = planes(site.dst, axes, True), planes(site.srcs[0], axes, False)
    return kernels.im2col_back(dst, grad, geometry(p["space"], p["window"], p))


def _parts(windows: Windows) -> list[Any]:
    """For each element (a, b) of a window: where padded planes have it, for all windows."""
    axes = list(zip(windows.dilation, windows.stride, windows.places, strict=True))
    return [
        np.s_[
            ...,
            *(
                slice(k * d, k * d + s * (n - 1) + 1, s)
                for k, (d, s, n) in zip(at, axes, strict=True)
            ),
        ]
        for at in np.ndindex(windows.size)
    ]


def _im2col_reference(x: Array, window: tuple[int, ...], **p: tuple[int, ...]) -> Array:
    axes = len(window)
    windows = geometry(x.shape[-axes:], window, p)
    around = [(0, 0)] * (x.ndim - axes) + [(n, n) for n in windows.padding[2 - axes :]]
    padded = np.pad(x, around)
    if axes == 1:
        padded = padded[..., None, :]
    columns = np.stack([padded[part] for part in _parts(windows)], -1)  # (…, C, H, W, kk)
    columns = np.moveaxis(columns, -4, -2)  # (…, H, W, C, kk)
    columns = columns.reshape(*columns.shape[:-2], math.prod(columns.shape[-2:]))
    return columns[..., 0, :, :] if axes == 1 else columns


def _im2col_back_reference(
    g: Array, space: tuple[int, ...], window: tuple[int, ...], **p: tuple[int, ...]
) -> Array:
    axes = len(window)
    windows = geometry(space, window, p)
    outer, (ph, pw) = g.shape[: g.ndim - axes - 1], windows.padding
    kk = math.prod(window)
    parts = g.reshape(*outer, *windows.places, g.shape[-1] // kk, kk)
    parts = np.moveaxis(parts, -2, -4)  # (…, C, rows, columns, kk)
    height, width = windows.plane
    padded = np.zeros((*parts.shape[:-3], height + 2 * ph, width + 2 * pw))
    for k, part in enumerate(_parts(windows)):
        padded[part] += parts[..., k]
    x = padded[..., ph : ph + height, pw : pw + width]
    return x[..., 0, :] if axes == 1 else x


def _draw_windows(d: Draw) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Sizes of a space of 1 or 2 axes, a window that fits it somewhere, and the settings."""
    space, window = [], []
    p: dict[str, tuple[int, ...]] = {"stride": (), "padding": (), "dilation": ()}
    axes = d.integer(1, 2)
    for _ in range(axes):
        k, dilation, padding = d.integer(1, 4), d.integer(1, 2), d.integer(0, 3)
        least = max(dilation * (k - 1) + 1 - 2 * padding, 1)
        most = 70 if d.integer(0, 7) == 7 else least + 6
        space.append(d.integer(least, max(most, least)))
        window.append(k)
        drawn = {"stride": d.integer(1, 3), "padding": padding, "dilation": dilation}
        p = {key: (*values, drawn[key]) for key, values in p.items()}
    return tuple(space), tuple(window), p


def _im2col_sample(d: Draw) -> Call:
    space, window, p = _draw_windows(d)
    outer = d.choice([(1,), (2,), (1, 3), (2, 2), (0, 1)])
    return call(d.floats((*outer, *space)), window, **p)


def _im2col_back_sample(d: Draw) -> Call:
    space, window, p = _draw_windows(d)
    found = fitting_places("im2col_back", space, window, p)
    outer, channels = d.choice([(), (1,), (2,), (0,)]), d.integer(1, 3)
    grad = d.floats((*outer, *found, channels * math.prod(window)))
    return call(grad, space, window, **p)


def _window(name: str, window: tuple[int, ...]) -> tuple[int, ...]:
    axes = len(window) if isinstance(window, tuple) else 0
    if axes not in (1, 2):
        raise SettingError(f"{name}: got window {window}, want one size or two, as (3,) or (3, 3)")
    return per_axis(name, "window", window, axes, 1)


def _need_planes(name: str, x: Tensor, axes: int) -> None:
    need_float(name, x)
    if x.ndim not in (axes + 1, axes + 2):
        want = "(N, C, L) or (C, L)" if axes == 1 else "(N, C, H, W) or (C, H, W)"
        raise ShapeError(f"{name}: got shape {x.shape}, want {want}")


def _im2col_errors() -> list[ErrorSample]:
    image = tensor(np.ones((1, 4, 4)))
    return [
        ErrorSample(lambda: im2col(tensor([[1, 2]]), (1,)), DtypeError, "i32"),
        ErrorSample(lambda: im2col(tensor([1.0]), (1,)), ShapeError, "(N, C, L)"),
        ErrorSample(lambda: im2col(image, (5, 1)), ShapeError, "does not fit"),
        ErrorSample(lambda: im2col(image, (1, 1, 1)), SettingError, "one size or two"),
        ErrorSample(lambda: im2col(image, (2, 2), stride=0), SettingError, "stride 0"),
        ErrorSample(lambda: im2col(image, (2, 2), padding=(1, -1)), SettingError, "padding"),
    ]


def _im2col_grad(y: Tensor, g: Tensor) -> Tensor:
    p = y.params
    space = y.srcs[0].shape[-len(p["window"]) :]
    return im2col_back(g, space, p["window"], p["stride"], p["padding"], p["dilation"])


@op(
    lower=_lower_im2col,
    vjp=(_im2col_grad,),
    reference=_im2col_reference,
    samples=_im2col_sample,
    error_samples=_im2col_errors,
    cost=0.0,
    family="convolution",
)
def im2col(
    x: Tensor,
    window: tuple[int, ...],
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
) -> Result:
    """Copy every window of a signal or image into a row; what lies outside is zero.

        y[n, i, j, (c, a, b)] = x[n, c, i·stride - padding + a·dilation, (the same for j, b)]

    Args:
        x: (N, C, L) or (N, C, H, W) float, N optional.
        window: (K,) or (kh, kw).
        stride, padding, dilation: one number, or one for each axis of the window.
    Returns:
        (N, places, C·K) or (N, rows, columns, C·kh·kw), dtype of `x`: the last axis is ordered
        as a weight (C, kh, kw) is.
    Raises:
        ShapeError: `x` has other axes, or the window fits nowhere. SettingError: sizes below 1.
    Gradient: with respect to `x` (`im2col_back`).
    Source: ggml_im2col, which takes the weight for its shape and gives f16.

    >>> im2col(tensor([[1.0, 2.0, 3.0]]), (2,), padding=(1,)).numpy()
    array([[0., 1.],
           [1., 2.],
           [2., 3.],
           [3., 0.]], dtype=float32)
    """
    window = _window("im2col", window)
    axes = len(window)
    _need_planes("im2col", x, axes)
    p = per_axes("im2col", axes, stride, padding, dilation)
    found = fitting_places("im2col", x.shape[-axes:], window, p)
    outer, channels = x.shape[: -axes - 1], x.shape[-axes - 1]
    shape = (*outer, *found, channels * math.prod(window))
    return Result((x,), shape, x.dtype, {"window": window, **p})


def _im2col_back_errors() -> list[ErrorSample]:
    grad = tensor(np.ones((2, 3, 4)))
    return [
        ErrorSample(lambda: im2col_back(tensor([[1]]), (1,), (1,)), DtypeError, "i32"),
        ErrorSample(lambda: im2col_back(grad, (4, 4), (2, 2)), ShapeError, "want (N, 3, 3, C * 4)"),
        ErrorSample(lambda: im2col_back(grad, (2, 3), (1, 3), padding=(0, 1)), ShapeError, "C * 3"),
        ErrorSample(lambda: im2col_back(grad, (4,), (2, 2)), SettingError, "space"),
    ]


def _im2col_back_grad(y: Tensor, g: Tensor) -> Tensor:
    p = y.params
    return im2col(g, p["window"], p["stride"], p["padding"], p["dilation"])


@op(
    lower=_lower_im2col_back,
    vjp=(_im2col_back_grad,),
    reference=_im2col_back_reference,
    samples=_im2col_back_sample,
    error_samples=_im2col_back_errors,
    family="convolution",
)
def im2col_back(
    g: Tensor,
    space: tuple[int, ...],
    window: tuple[int, ...],
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
) -> Result:
    """Gradient of `im2col`: rows added where their windows were; also known as col2im.

    Args:
        g: (N, places, C·K) or (N, rows, columns, C·kh·kw) float, N optional.
        space: (L,) or (H, W): sizes of the planes that come out.
        window, stride, padding, dilation: as in `im2col`.
    Returns:
        (N, C, L) or (N, C, H, W), dtype of `g`.
    Raises:
        ShapeError: `g` is not what `im2col` gives for such planes.
    Gradient: with respect to `g` (`im2col`).
    Source: ggml_im2col_back.

    >>> im2col_back(tensor([[1.0, 2.0], [3.0, 4.0]]), (3,), (2,)).numpy()
    array([[1., 5., 4.]], dtype=float32)
    """
    window = _window("im2col_back", window)
    axes = len(window)
    need_float("im2col_back", g)
    p = per_axes("im2col_back", axes, stride, padding, dilation)
    space = per_axis("im2col_back", "space", space, axes, 1)
    found = fitting_places("im2col_back", space, window, p)
    kk = math.prod(window)
    outer = g.shape[: max(g.ndim - axes - 1, 0)]
    if g.ndim - axes not in (1, 2) or g.shape[-axes - 1 : -1] != found or g.shape[-1] % kk:
        raise ShapeError(
            f"im2col_back: got {g.shape}, want (N, {', '.join(map(str, found))}, C * {kk}), N "
            f"optional: what im2col gives for {space}"
        )
    shape = (*outer, g.shape[-1] // kk, *space)
    return Result((g,), shape, g.dtype, {"space": space, "window": window, **p})
