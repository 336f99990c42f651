"""Optimiser steps: one pass over a parameter, its gradient and its state."""

import math
from typing import Any

from yupana.graphlib.kernels.blocks import View, both_kernels
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F64
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import f32_array, f64_array, i64_array
from yupana.graphlib.kernels.step import Step

_BLOCK = 4096  # elements per chunk
# Placeholders of the names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None
sqrt: Any = None
ITEMSIZE = 0


def adamw(
    param: View, grad: View, m: View, v: View, settings: View, scale: View | None = None
) -> list[Step]:
    """Update `param`, `m` and `v` in place; like `grad` contiguous and of one type, f32 or f64.

    `settings` are 7 contiguous f32 or f64: alpha, beta1, beta2, eps, decay, and the factors
    1 / (1 - beta^t) of both moments. `scale`, one f32 or f64, multiplies the gradient; nothing
    is updated where it is not finite.
    """
    return _step(_ADAMW, [param, grad, m, v], settings, scale, ns=0.6)


def sgd(param: View, grad: View, settings: View, scale: View | None = None) -> list[Step]:
    """Update `param` in place; `settings` are alpha and decay. Otherwise as `adamw`."""
    return _step(_SGD, [param, grad], settings, scale, ns=0.3)


def _step(
    kernels: dict[bool, Kernel], views: list[View], settings: View, scale: View | None, ns: float
) -> list[Step]:
    size = math.prod(views[0].shape)
    if not size:
        return []
    wide = views[0].code == F64
    scaling = (0, 0) if scale is None else (scale.code, scale.address)
    addresses = (view.address for view in views)
    record = (size, settings.code, settings.address, *scaling, *addresses)
    chunks = -(-size // _BLOCK)
    return [Step(kernels[wide], record, chunks, ns * size * (1 + wide) + 20 * chunks)]


@for_kernels
def _setting(r, k):
    """Setting number `k`, of either type."""
    if r[1] == F64:
        return f64_array(r[2], k + 1)[k]
    return float(f32_array(r[2], k + 1)[k])


@for_kernels
def _scale(r):
    """What the gradient is multiplied by."""
    if r[4] == 0:
        return 1.0
    if r[3] == F64:
        return f64_array(r[4], 1)[0]
    return float(f32_array(r[4], 1)[0])


def adamw_kernel(record, begin, end, scratch):
    """Chunks are blocks of elements."""
    r = i64_array(record, 9)
    if not math.isfinite(_scale(r)):
        return
    scale = real(_scale(r))
    alpha, beta1, beta2 = real(_setting(r, 0)), real(_setting(r, 1)), real(_setting(r, 2))
    eps, decay = real(_setting(r, 3)), real(_setting(r, 4))
    beta1h, beta2h = real(_setting(r, 5)), real(_setting(r, 6))
    keep, new1, new2 = real(1) - alpha * decay, real(1) - beta1, real(1) - beta2
    for chunk in range(begin, end):
        start = chunk * _BLOCK
        n = min(_BLOCK, r[0] - start)
        at = start * ITEMSIZE
        x, g = array(r[5] + at, n), array(r[6] + at, n)
        m, v = array(r[7] + at, n), array(r[8] + at, n)
        for i in range(n):
            gi = g[i] * scale
            m1 = m[i] * beta1 + gi * new1
            v1 = v[i] * beta2 + gi * gi * new2
            m[i] = m1
            v[i] = v1
            x[i] = x[i] * keep - alpha * (m1 * beta1h) / (sqrt(v1 * beta2h) + eps)


def sgd_kernel(record, begin, end, scratch):
    """Chunks are blocks of elements."""
    r = i64_array(record, 7)
    if not math.isfinite(_scale(r)):
        return
    scale = real(_scale(r))
    alpha, decay = real(_setting(r, 0)), real(_setting(r, 1))
    keep = real(1) - alpha * decay
    for chunk in range(begin, end):
        start = chunk * _BLOCK
        n = min(_BLOCK, r[0] - start)
        x = array(r[5] + start * ITEMSIZE, n)
        g = array(r[6] + start * ITEMSIZE, n)
        for i in range(n):
            x[i] = x[i] * keep - alpha * (g[i] * scale)


_ROUNDING = {"contract", "nsz"}  # without reassociation
_ADAMW = both_kernels(adamw_kernel, fastmath=_ROUNDING, sqrt=math.sqrt)
_SGD = both_kernels(sgd_kernel, fastmath=_ROUNDING)
