"""Axes made longer or shorter by interpolation between their elements."""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import check_shape, tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.taps import Taps, tap_steps, transposed
from yupana.graphlib.op import (
    REGISTRY,
    Array,
    Call,
    Draw,
    ErrorSample,
    Lower,
    Result,
    Site,
    Vjp,
    call,
    op,
)
from yupana.graphlib.ops._rules import need_axes, need_float, view
from yupana.graphlib.ops.arrange import axis_of
from yupana.graphlib.tensor import Tensor

_MODES = ("nearest", "linear", "cubic")


def _position(k: int, n: int, size: int, align_corners: bool) -> float:
    """Where output `k` of `size` lies among `n` inputs."""
    if align_corners:
        return k * (n - 1) / max(size - 1, 1)
    return (k + 0.5) * n / size - 0.5


def _cubic_weights(t: float) -> list[float]:
    """Weights of the elements at -1, 0, 1, 2 for a position between the middle two."""
    a = -0.75  # as PyTorch and ggml have it
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
    return [far[0], *near, far[1]]


def _interpolation_taps(n: int, size: int, mode: str, align_corners: bool) -> Taps:
    """What each of `size` outputs reads of `n` inputs."""
    taps: list[list[tuple[int, float]]] = []
    for k in range(size):
        if mode == "nearest":
            taps.append([(min(k * n // size, n - 1), 1.0)])
            continue
        at = _position(k, n, size, align_corners)
        if mode == "linear":
            at = min(max(at, 0.0), n - 1.0)
        first = math.floor(at)
        t = at - first
        weights = [1 - t, t] if mode == "linear" else _cubic_weights(t)
        start = first if mode == "linear" else first - 1
        pairs: dict[int, float] = defaultdict(float)
        for j, weight in enumerate(weights):
            pairs[min(max(start + j, 0), n - 1)] += weight
        taps.append([pair for pair in pairs.items() if pair[1] != 0.0])
    return taps


def _lower_interpolate(is_back: bool) -> Lower:
    def lower(site: Site) -> list[Step]:
        p, axis = site.params, site.params["axis"]
        n, size = site.srcs[0].shape[axis], site.dst.shape[axis]
        if is_back:
            taps = transposed(_interpolation_taps(size, n, p["mode"], p["align_corners"]), size)
        else:
            taps = _interpolation_taps(n, size, p["mode"], p["align_corners"])
        return tap_steps(view(site.dst), view(site.srcs[0]), axis, taps)

    return lower


def _cubic(d: Array) -> Array:
    """Keys 1981, eq. 4 with a = -3/4."""
    d, a = np.abs(d), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _matrix(n: int, size: int, mode: str, align_corners: bool) -> Array:
    """Interpolation of `n` elements to `size`, as a matrix (size, n)."""
    k = np.arange(size)
    if mode == "nearest":
        return np.eye(n)[k * n // size]
    at = k * (n - 1) / max(size - 1, 1) if align_corners else (k + 0.5) * n / size - 0.5
    if mode == "linear":
        kernel: Callable[[Array], Array] = lambda d: np.maximum(1 - np.abs(d), 0.0)  # noqa: E731
    else:
        kernel = _cubic
    # Elements beyond the ends are those at the ends.
    wide = kernel(at[:, None] - np.arange(-3, n + 3))
    matrix = wide[:, 3:-3].copy()
    matrix[:, 0] += wide[:, :3].sum(axis=1)
    matrix[:, -1] += wide[:, -3:].sum(axis=1)
    return matrix


def multiply(matrix: Array, x: Array, axis: int) -> Array:
    """Matrix times `x` along an axis; what has weight 0 does not count, even infinity."""
    lines = np.moveaxis(x, axis, 0)
    weights = matrix.reshape(*matrix.shape, *(1,) * (x.ndim - 1))
    return np.moveaxis(np.where(weights == 0, 0.0, weights * lines).sum(axis=1), 0, axis)


def _interpolate_reference(x: Array, n: int, axis: int, mode: str, align_corners: bool) -> Array:
    return multiply(_matrix(x.shape[axis], n, mode, align_corners), x, axis)


def _back_reference(g: Array, n: int, axis: int, mode: str, align_corners: bool) -> Array:
    return multiply(_matrix(n, g.shape[axis], mode, align_corners).T, g, axis)


def _interpolate_sample(d: Draw) -> Call:
    shape = list(d.shape())
    axis = d.integer(0, len(shape) - 1)
    shape[axis] = d.integer(1, 7)
    corners = d.choice([False, True])
    mode = d.choice(_MODES[1:] if corners else _MODES)
    return call(d.floats(tuple(shape)), d.integer(1, 15), axis, mode, corners)


def _interpolate_errors(name: str) -> list[ErrorSample]:
    def run(x: ArrayLike, *rest: object) -> Tensor:
        return REGISTRY[name](tensor(x), *rest)

    return [
        ErrorSample(lambda: run([1], 2), DtypeError, "i32"),
        ErrorSample(lambda: run([1.0], 2, 1), ShapeError, "axis 1"),
        ErrorSample(lambda: run([1.0], 0), SettingError, "n=0"),
        ErrorSample(lambda: run([1.0], 2, 0, "sharp"), SettingError, "'sharp'"),
        ErrorSample(lambda: run([1.0], 2, 0, "nearest", True), SettingError, "corners"),
        ErrorSample(lambda: run(np.ones((2, 0)), 2), ShapeError, "empty"),
    ]


def _result(name: str, x: Tensor, n: int, axis: int, mode: str, align_corners: bool) -> Result:
    need_float(name, x)
    axis = axis_of(name, x, axis)
    if n < 1:
        raise SettingError(f"{name}: got n={n}, want at least one element")
    if x.shape[axis] == 0:
        raise ShapeError(f"{name}: axis {axis} of {x.shape} is empty, want at least one element")
    if mode not in _MODES:
        raise SettingError(f"{name}: got mode {mode!r}, want one of {', '.join(_MODES)}")
    if mode == "nearest" and align_corners:
        raise SettingError(f"{name}: got align_corners for mode 'nearest', want another mode")
    shape = (*x.shape[:axis], int(n), *x.shape[axis + 1 :])
    params = {"n": int(n), "axis": axis, "mode": mode, "align_corners": bool(align_corners)}
    return Result((x,), check_shape(name, shape), x.dtype, params)


def _grad(name: str) -> Vjp:
    """The rule of either op: the other, back to the size of the source."""

    def rule(y: Tensor, g: Tensor) -> Tensor:
        n = y.srcs[0].shape[y.params["axis"]]
        return REGISTRY[name](g, **{**y.params, "n": n})

    return rule


@op(
    lower=_lower_interpolate(is_back=False),
    vjp=(_grad("interpolate_back"),),
    reference=_interpolate_reference,
    samples=_interpolate_sample,
    error_samples=lambda: _interpolate_errors("interpolate"),
    cost=4.0,
    family="resize",
)
def interpolate(
    x: Tensor, n: int, axis: int = -1, mode: str = "linear", align_corners: bool = False
) -> Result:
    """Resample one axis to `n` elements.

    Element k of the result lies at (k + 1/2) · size / n - 1/2 among those of `x`; with
    `align_corners` at k · (size - 1) / (n - 1). Beyond the ends the elements at the ends count.

    Args:
        x: float.
        n: the new size of the axis; at least 1.
        mode: "nearest" (the element at floor(k · size / n)), "linear" between two elements, or
            "cubic" through four (Keys 1981 with a = -3/4).
    Returns:
        `x` with `n` in place of the axis's size; its dtype.
    Raises:
        ShapeError: no such axis, or it is empty. SettingError: another mode, or n below 1.
    Gradient: with respect to `x` (ggml has none). Source: ggml_interpolate, one axis at a time.

    >>> interpolate(tensor([0.0, 4.0]), 4).numpy()
    array([0., 1., 3., 4.], dtype=float32)
    """
    return _result("interpolate", x, n, axis, mode, align_corners)


@op(
    lower=_lower_interpolate(is_back=True),
    vjp=(_grad("interpolate"),),
    reference=_back_reference,
    samples=_interpolate_sample,
    error_samples=lambda: _interpolate_errors("interpolate_back"),
    cost=4.0,
    family="resize",
)
def interpolate_back(
    g: Tensor, n: int, axis: int = -1, mode: str = "linear", align_corners: bool = False
) -> Result:
    """Gradient of `interpolate` from an axis of `n` elements.

    Gradient: with respect to `g`. Source: derived from `interpolate`; ggml has none.

    >>> interpolate_back(tensor([1.0, 1.0, 1.0, 1.0]), 2).numpy()
    array([2., 2.], dtype=float32)
    """
    return _result("interpolate_back", g, n, axis, mode, align_corners)


def resize(
    x: Tensor, shape: tuple[int, ...], mode: str = "linear", align_corners: bool = False
) -> Tensor:
    """`interpolate` along every axis whose size differs.

    Gradient: with respect to `x`. Source: ggml_interpolate.

    >>> resize(tensor([[0.0, 4.0]]), (2, 4)).numpy()
    array([[0., 1., 3., 4.],
           [0., 1., 3., 4.]], dtype=float32)
    """
    if len(shape) != x.ndim:
        raise ShapeError(f"resize: got {x.shape} to {shape}, want as many axes")
    for axis, n in enumerate(shape):
        if n != x.shape[axis]:
            x = interpolate(x, n, axis, mode, align_corners)
    return x


def upscale(x: Tensor, factor: int, mode: str = "nearest") -> Tensor:
    """Make images `factor` times larger: (…, H, W) → (…, factor · H, factor · W).

    Args:
        x: float of at least two axes.
        factor: at least 1.
        mode: "nearest", "linear" (bilinear) or "cubic".
    Gradient: with respect to `x` (ggml has none). Source: ggml_upscale.

    >>> upscale(tensor([[1.0, 2.0]]), 2).numpy()
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]], dtype=float32)
    """
    need_axes("upscale", x, 2)
    if factor < 1:
        raise SettingError(f"upscale: got factor={factor}, want a whole number from 1")
    return resize(x, (*x.shape[:-2], factor * x.shape[-2], factor * x.shape[-1]), mode)
