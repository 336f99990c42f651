"""Convolution of each channel with weights of its own, and what its gradients are made of.

The three ops are linear in both of their tensors, and each is the gradient of the others, so that
derivatives of any order exist.
"""

from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.depthwise import (
    depthwise_back_steps,
    depthwise_steps,
    depthwise_weights_steps,
)
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import REGISTRY, Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import four_axes, need_float, wide_dtype
from yupana.graphlib.ops._windows import Sizes, fitting_places, geometry, per_axes, per_axis
from yupana.graphlib.tensor import Tensor

Shape = tuple[int, ...]


def _lower(site: Site) -> list[Step]:
    w, x = site.srcs
    windows = geometry(x.shape[-2:], w.shape[-2:], site.params)
    return depthwise_steps(four_axes(site.dst), four_axes(w), four_axes(x), windows)


def _lower_back(site: Site) -> list[Step]:
    g, w = site.srcs
    windows = geometry(site.params["plane"], w.shape[-2:], site.params)
    return depthwise_back_steps(four_axes(site.dst), four_axes(g), four_axes(w), windows)


def _lower_weights(site: Site) -> list[Step]:
    g, x = site.srcs
    windows = geometry(x.shape[-2:], site.params["window"], site.params)
    return depthwise_weights_steps(four_axes(site.dst), four_axes(g), four_axes(x), windows)


def _parts(places: Shape, window: Shape, p: dict[str, Shape]) -> list[Any]:
    """For each element (a, b) of a window: where padded planes have it, for all windows."""
    axes = list(zip(p["stride"], p["dilation"], places, strict=True))
    slices = [
        [slice(k * d, k * d + s * (n - 1) + 1, s) for k in range(size)]
        for size, (s, d, n) in zip(window, axes, strict=True)
    ]
    return [(*at, np.s_[..., slices[0][at[0]], slices[1][at[1]]]) for at in np.ndindex(window)]


def _padded(x: Array, padding: Shape) -> Array:
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(n, n) for n in padding])


def _reference(w: Array, x: Array, **p: Shape) -> Array:
    places = fitting_places("conv_2d_dw", x.shape[-2:], w.shape[-2:], p)
    padded = _padded(x, p["padding"])
    y = np.zeros((*x.shape[:-2], *places))
    for a, b, part in _parts(places, w.shape[-2:], p):
        y += w[:, :, a, b, None] * padded[part]
    return y


def _back_reference(g: Array, w: Array, plane: Shape, **p: Shape) -> Array:
    x = _padded(np.zeros((*g.shape[:-2], *plane)), p["padding"])
    for a, b, part in _parts(g.shape[-2:], w.shape[-2:], p):
        x[part] += w[:, :, a, b, None] * g
    (ph, pw), (height, width) = p["padding"], plane
    return x[..., ph : ph + height, pw : pw + width]


def _weights_reference(g: Array, x: Array, window: Shape, **p: Shape) -> Array:
    padded = _padded(x, p["padding"])
    w = np.zeros((x.shape[-3], 1, *window))
    images = tuple(range(x.ndim - 3))
    for a, b, part in _parts(g.shape[-2:], window, p):
        w[:, 0, a, b] = (g * padded[part]).sum((*images, -2, -1))
    return w


def _drawn(d: Draw) -> tuple[Shape, Shape, Shape, Shape, dict[str, Shape]]:
    """Axes before the planes, planes, windows, places and settings that fit each other."""
    outer = d.choice([(1,), (2,), (1, 3), (2, 2), (0, 1)])
    p: dict[str, Shape] = {}
    plane: Shape = ()
    window: Shape = ()
    for name, least, most in (("stride", 1, 3), ("padding", 0, 3), ("dilation", 1, 2)):
        p[name] = (d.integer(least, most), d.integer(least, most))
    for padding, dilation in zip(p["padding"], p["dilation"], strict=True):
        window = (*window, d.integer(1, 5))
        least = max(dilation * (window[-1] - 1) + 1 - 2 * padding, 1)
        plane = (*plane, d.choice([least, least + 1, least + 5, least + 40]))
    return outer, plane, window, fitting_places("conv_2d_dw", plane, window, p), p


def _sample(d: Draw) -> Call:
    outer, plane, window, _, p = _drawn(d)
    return call(d.floats((outer[-1], 1, *window)), d.floats((*outer, *plane)), **p)


def _finite(d: Draw, shape: Shape) -> Tensor:
    """Bounds of their own: zeros around are multiplied too, which makes NaN of infinities."""
    return d.floats(shape, -2.9, 3.0)


def _back_sample(d: Draw) -> Call:
    outer, plane, window, places, p = _drawn(d)
    return call(_finite(d, (*outer, *places)), _finite(d, (outer[-1], 1, *window)), plane, **p)


def _weights_sample(d: Draw) -> Call:
    outer, plane, window, places, p = _drawn(d)
    return call(_finite(d, (*outer, *places)), _finite(d, (*outer, *plane)), window, **p)


def _errors() -> list[ErrorSample]:
    w, x = tensor(np.ones((2, 1, 2, 2))), tensor(np.ones((2, 3, 3)))
    return [
        ErrorSample(lambda: conv_2d_dw(w, tensor([[[1]]])), DtypeError, "i32"),
        ErrorSample(lambda: conv_2d_dw(x, x), ShapeError, "weights (2, 1, kh, kw)"),
        ErrorSample(lambda: conv_2d_dw(w, x, dilation=3), ShapeError, "does not fit"),
        ErrorSample(lambda: conv_2d_dw(w, x, stride=0), SettingError, "stride 0"),
    ]


def _back_errors() -> list[ErrorSample]:
    w, g = tensor(np.ones((2, 1, 2, 2))), tensor(np.ones((2, 3, 3)))
    return [
        ErrorSample(lambda: conv_2d_dw_back(tensor([[[1]]]), w, (4, 4)), DtypeError, "i32"),
        ErrorSample(lambda: conv_2d_dw_back(g, w, (5, 4)), ShapeError, "want (…, 2, 4, 3)"),
        ErrorSample(lambda: conv_2d_dw_back(g, g, (4, 4)), ShapeError, "weights (2, 1, kh, kw)"),
        ErrorSample(lambda: conv_2d_dw_back(g, w, (4, 4, 4)), SettingError, "plane"),
    ]


def _weights_errors() -> list[ErrorSample]:
    x, g = tensor(np.ones((2, 4, 4))), tensor(np.ones((2, 3, 3)))
    return [
        ErrorSample(lambda: conv_2d_dw_weights(g, tensor([[[1]]]), (2, 2)), DtypeError, "i32"),
        ErrorSample(lambda: conv_2d_dw_weights(g, x, (1, 2)), ShapeError, "want (2, 4, 3)"),
        ErrorSample(lambda: conv_2d_dw_weights(g, x, (0, 2)), SettingError, "window"),
    ]


def _settings(y: Tensor) -> dict[str, Any]:
    return {name: y.params[name] for name in ("stride", "padding", "dilation")}


def _of_weights(y: Tensor, g: Tensor) -> Tensor:
    w, x = y.srcs
    return REGISTRY["conv_2d_dw_weights"](g, x, w.shape[-2:], **_settings(y))


def _of_planes(y: Tensor, g: Tensor) -> Tensor:
    w, x = y.srcs
    return REGISTRY["conv_2d_dw_back"](g, w, x.shape[-2:], **_settings(y))


def _check_weights(name: str, w: Tensor, x: Tensor) -> None:
    need_float(name, w, x)
    if x.ndim not in (3, 4) or w.ndim != 4 or w.shape[:2] != (x.shape[-3], 1):
        channels = x.shape[-3] if x.ndim > 2 else "C"
        raise ShapeError(
            f"{name}: weights and input do not fit: got {w.shape} and {x.shape}, want weights "
            f"({channels}, 1, kh, kw) for an input (N, C, H, W), N optional"
        )


@op(
    lower=_lower,
    vjp=(_of_weights, _of_planes),
    reference=_reference,
    samples=_sample,
    error_samples=_errors,
    cost=18.0,
    family="convolution",
)
def conv_2d_dw(
    w: Tensor, x: Tensor, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1
) -> Result:
    """Convolve each channel with weights of its own (depthwise).

        y[n, c, i, j] = sum_{a, b} w[c, 0, a, b] · x[n, c, i·stride - padding + a·dilation, (…)]

    Args:
        w: (C, 1, kh, kw) float. x: (N, C, H, W) float, N optional; zero outside.
        stride, padding, dilation: one number, or (rows, columns).
    Returns:
        (N, C, rows, columns), f32, or f64 if an operand is.
    Raises:
        ShapeError: the channels differ, or the window fits nowhere.
    Gradient: with respect to both. Source: ggml_conv_2d_dw.

    >>> x = tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    >>> conv_2d_dw(tensor([[[[1.0, 1.0]]], [[[1.0, -1.0]]]]), x).numpy()
    array([[[ 3.]],
    <BLANKLINE>
           [[-1.]]], dtype=float32)
    """
    _check_weights("conv_2d_dw", w, x)
    p = per_axes("conv_2d_dw", 2, stride, padding, dilation)
    places = fitting_places("conv_2d_dw", x.shape[-2:], w.shape[-2:], p)
    return Result((w, x), (*x.shape[:-2], *places), wide_dtype(w, x), p)


@op(
    lower=_lower_back,
    vjp=(
        lambda y, g: conv_2d_dw(y.srcs[1], g, **_settings(y)),
        lambda y, g: REGISTRY["conv_2d_dw_weights"](
            y.srcs[0], g, y.srcs[1].shape[-2:], **_settings(y)
        ),
    ),
    reference=_back_reference,
    samples=_back_sample,
    error_samples=_back_errors,
    cost=18.0,
    family="convolution",
)
def conv_2d_dw_back(
    g: Tensor,
    w: Tensor,
    plane: tuple[int, ...],
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
) -> Result:
    """Gradient of `conv_2d_dw` with respect to its planes, times `g`.

    Args:
        g: (N, C, rows, columns) float, N optional: the shape of what `conv_2d_dw` gives.
        plane: (H, W). The rest is as there.
    Returns:
        (N, C, H, W), f32, or f64 if an operand is; with an infinity in `g` or `w`, NaN around it.
    Gradient: with respect to both. Source: the transposed convolution of each channel.

    >>> conv_2d_dw_back(tensor([[[1.0, 2.0]]]), tensor([[[[1.0, 10.0]]]]), (1, 3)).numpy()
    array([[[ 1., 12., 20.]]], dtype=float32)
    """
    _check_weights("conv_2d_dw_back", w, g)
    p = per_axes("conv_2d_dw_back", 2, stride, padding, dilation)
    plane = per_axis("conv_2d_dw_back", "plane", plane, 2, 1)
    places = fitting_places("conv_2d_dw_back", plane, w.shape[-2:], p)
    if g.shape[-2:] != places:
        want = ", ".join(map(str, (g.shape[-3], *places)))
        raise ShapeError(f"conv_2d_dw_back: got g {g.shape}, want (…, {want})")
    return Result((g, w), (*g.shape[:-2], *plane), wide_dtype(g, w), {"plane": plane, **p})


@op(
    lower=_lower_weights,
    vjp=(
        lambda y, g: conv_2d_dw(g, y.srcs[1], **_settings(y)),
        lambda y, g: conv_2d_dw_back(y.srcs[0], g, y.srcs[1].shape[-2:], **_settings(y)),
    ),
    reference=_weights_reference,
    samples=_weights_sample,
    error_samples=_weights_errors,
    family="convolution",
)
def conv_2d_dw_weights(
    g: Tensor,
    x: Tensor,
    window: tuple[int, ...],
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
) -> Result:
    """Gradient of `conv_2d_dw` with respect to its weights, times `g`.

    Args:
        g: (N, C, rows, columns) float, N optional: the shape of what `conv_2d_dw` gives.
        window: (kh, kw). The rest is as there.
    Returns:
        (C, 1, kh, kw), f32, or f64 if an operand is; NaN for channels with an infinity.
    Gradient: with respect to both. Source: products of windows with `g`, added up.

    >>> x = tensor([[[1.0, 2.0, 4.0]]])
    >>> conv_2d_dw_weights(tensor([[[1.0, 10.0]]]), x, (1, 2)).numpy()
    array([[[[21., 42.]]]], dtype=float32)
    """
    need_float("conv_2d_dw_weights", g, x)
    p = per_axes("conv_2d_dw_weights", 2, stride, padding, dilation)
    window = per_axis("conv_2d_dw_weights", "window", window, 2, 1)
    places = fitting_places("conv_2d_dw_weights", x.shape[-2:], window, p)
    if x.ndim not in (3, 4) or g.shape != (*x.shape[:-2], *places):
        raise ShapeError(
            f"conv_2d_dw_weights: got g {g.shape} for x {x.shape}, want "
            f"{(*x.shape[:-2], *places)} for planes with channels"
        )
    shape = (x.shape[-3], 1, *window)
    return Result((g, x), shape, wide_dtype(g, x), {"window": window, **p})
