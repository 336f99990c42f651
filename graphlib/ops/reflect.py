"""Rows continued by their reflection at both ends."""

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
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
    call,
    op,
)
from yupana.graphlib.ops._rules import need_axes, need_float, view
from yupana.graphlib.ops.resize import multiply
from yupana.graphlib.tensor import Tensor


def _reflection_taps(n: int, before: int, after: int) -> Taps:
    places = [abs(k) for k in range(-before, n + after)]
    # what lies beyond the first element, then beyond the last
    return [[(k if k < n else 2 * (n - 1) - k, 1.0)] for k in places]


def _lower_reflect(is_back: bool) -> Lower:
    def lower(site: Site) -> list[Step]:
        before, after = site.params["before"], site.params["after"]
        n = (site.dst if is_back else site.srcs[0]).shape[-1]
        taps = _reflection_taps(n, before, after)
        dst, src = view(site.dst), view(site.srcs[0])
        return tap_steps(dst, src, len(src.shape) - 1, transposed(taps, n) if is_back else taps)

    return lower


def _reflect_reference(x: Array, before: int, after: int) -> Array:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)], mode="reflect")


def _reflect_back_reference(g: Array, before: int, after: int) -> Array:
    n = g.shape[-1] - before - after
    return multiply(_reflect_reference(np.eye(n), before, after), g, g.ndim - 1)


def _reflect_sample(d: Draw) -> Call:
    n = d.integer(1, 9)
    x = d.floats((*d.shape(0, 3), n))
    return call(x, d.integer(0, n - 1), d.integer(0, n - 1))


def _reflect_back_sample(d: Draw) -> Call:
    n = d.integer(1, 9)
    before, after = d.integer(0, n - 1), d.integer(0, n - 1)
    return call(d.floats((*d.shape(0, 3), n + before + after)), before, after)


def _reflect_errors(name: str) -> list[ErrorSample]:
    def run(x: ArrayLike, before: int) -> Tensor:
        return REGISTRY[name](tensor(x), before, 0)

    return [
        ErrorSample(lambda: run([1, 2], 1), DtypeError, "i32"),
        ErrorSample(lambda: run(1.0, 1), ShapeError, "1 axes"),
        ErrorSample(lambda: run([1.0, 2.0], -1), SettingError, "before=-1"),
        ErrorSample(lambda: run([1.0, 2.0], 2), SettingError, "before=2"),
    ]


def _reflected(name: str, x: Tensor, before: int, after: int, is_back: bool) -> Result:
    need_float(name, x)
    need_axes(name, x, 1)
    n = x.shape[-1] - (before + after if is_back else 0)
    if min(before, after) < 0 or max(before, after) >= max(n, 1):
        raise SettingError(
            f"{name}: got before={before} and after={after} for rows of {n}, want widths from 0 "
            "that are less than that"
        )
    length = n if is_back else n + before + after
    params = {"before": int(before), "after": int(after)}
    return Result((x,), (*x.shape[:-1], length), x.dtype, params)


def _reflect_grad(y: Tensor, g: Tensor) -> Tensor:
    return pad_reflect_1d_back(g, y.params["before"], y.params["after"])


@op(
    lower=_lower_reflect(is_back=False),
    vjp=(_reflect_grad,),
    reference=_reflect_reference,
    samples=_reflect_sample,
    error_samples=lambda: _reflect_errors("pad_reflect_1d"),
    cost=0.0,
    family="resize",
)
def pad_reflect_1d(x: Tensor, before: int, after: int) -> Result:
    """Continue rows at both ends by what lies on the other side of their first and last element.

    Args:
        x: (…, D) float. before, after: elements to add; less than D.
    Returns:
        (…, before + D + after).
    Gradient: with respect to `x` (`pad_reflect_1d_back`; ggml has none).
    Source: ggml_pad_reflect_1d.

    >>> pad_reflect_1d(tensor([1.0, 2.0, 3.0]), 2, 1).numpy()
    array([3., 2., 1., 2., 3., 2.], dtype=float32)
    """
    return _reflected("pad_reflect_1d", x, before, after, is_back=False)


@op(
    lower=_lower_reflect(is_back=True),
    vjp=(lambda y, u: pad_reflect_1d(u, y.params["before"], y.params["after"]),),
    reference=_reflect_back_reference,
    samples=_reflect_back_sample,
    error_samples=lambda: _reflect_errors("pad_reflect_1d_back"),
    family="resize",
)
def pad_reflect_1d_back(g: Tensor, before: int, after: int) -> Result:
    """Gradient of `pad_reflect_1d`: what was added is folded back.

    Gradient: with respect to `g`. Source: derived from `pad_reflect_1d`; ggml has none.

    >>> pad_reflect_1d_back(tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 2, 1).numpy()
    array([1., 3., 2.], dtype=float32)
    """
    return _reflected("pad_reflect_1d_back", g, before, after, is_back=True)
