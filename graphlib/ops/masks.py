"""Masks that make attention causal, and biases that make it prefer what is near."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.rowwise import Rows
from yupana.graphlib.kernels.step import Step
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
from yupana.graphlib.ops._rules import float_like, need_axes, need_float, view
from yupana.graphlib.ops.arithmetic import add
from yupana.graphlib.tensor import Tensor


def alibi_slopes(n_heads: int, max_bias: float) -> Array:
    """What the bias of each head is multiplied with: m, m², … with m = 2^(-max_bias / n).

    n is the largest power of two in `n_heads`; the heads beyond it take the odd powers of sqrt(m).
    Source: Press et al. 2021, section 3; the slopes of ggml_soft_max_ext.
    """
    n = 1 << max(n_heads.bit_length() - 1, 0)
    exponents = [h + 1.0 if h < n else h - n + 0.5 for h in range(n_heads)]
    return np.exp2(-max_bias / n * np.array(exponents))


def alibi(x: Tensor, max_bias: float = 8.0) -> Tensor:
    """Add m_h · s to the scores of head h: what is near the end of a row gains.

    Args:
        x: (…, H, T, S) float; the heads are axis -3.
        max_bias: decides the slopes m_h, see `alibi_slopes`.
    Raises:
        ShapeError: fewer than three axes. SettingError: `max_bias` is negative.
    Gradient: with respect to `x`. Source: ggml_alibi.

    >>> alibi(tensor([[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]])).numpy()[1]
    array([[1.       , 1.0039062, 1.0078125]], dtype=float32)
    """
    need_float("alibi", x)
    need_axes("alibi", x, 3)
    if not 0 <= max_bias < math.inf:
        raise SettingError(f"alibi: got max_bias={max_bias}, want a number that is not negative")
    slopes = alibi_slopes(x.shape[-3], max_bias)[:, None, None]
    return add(x, tensor(slopes * np.arange(x.shape[-1]), x.dtype))


def _diag_mask(y, x, i, p):
    limit, beyond = int(p[0]) + i, y.dtype.type(p[1])
    for j in range(y.size):
        y[j] = beyond if j > limit else x[j]


_diag_mask_rows = Rows(_diag_mask, 1, ns=0.1)


def _lower_mask(value: float) -> Lower:
    def lower(site: Site) -> list[Step]:
        n_past = float(site.params["n_past"])
        return _diag_mask_rows.steps(view(site.dst), [view(site.srcs[0])], [n_past, value])

    return lower


def _mask_reference(value: float) -> Callable[[Array, int], Array]:
    def reference(x: Array, n_past: int) -> Array:
        rows, columns = np.indices(x.shape[-2:])
        return np.asarray(np.where(columns > n_past + rows, value, x))

    return reference


def _mask_errors(name: str) -> list[ErrorSample]:
    def run(x: ArrayLike, n_past: int) -> Tensor:
        return REGISTRY[name](tensor(x), n_past)

    return [
        ErrorSample(lambda: run([[1]], 0), DtypeError, "i32"),
        ErrorSample(lambda: run([1.0], 0), ShapeError, "at least 2 axes"),
        ErrorSample(lambda: run([[1.0]], -1), SettingError, "n_past"),
    ]


def _mask_result(name: str, x: Tensor, n_past: int) -> Result:
    need_axes(name, x, 2)
    if n_past < 0:
        raise SettingError(f"{name}: got n_past={n_past}, want the number of columns before row 0")
    return float_like(name, x, n_past=int(n_past))


def _mask_sample(d: Draw) -> Call:
    return call(d.floats(d.shape(min_axes=2)), d.integer(0, 3))


def _visible_grad(y: Tensor, g: Tensor) -> Tensor:
    return diag_mask_zero(g, y.params["n_past"])


@op(
    lower=_lower_mask(-np.inf),
    vjp=(_visible_grad,),
    reference=_mask_reference(-np.inf),
    samples=_mask_sample,
    error_samples=lambda: _mask_errors("diag_mask_inf"),
    inplace=(0,),
    cost=0.0,
    family="softmax",
)
def diag_mask_inf(x: Tensor, n_past: int = 0) -> Result:
    """Hide the future: row i keeps its columns up to n_past + i, the rest become -inf.

    Args:
        x: (…, T, S) float; rows are axis -2.
        n_past: columns before the one that row 0 stands for.
    Raises:
        ShapeError: fewer than two axes. SettingError: `n_past` is negative.
    Gradient: with respect to `x`. Source: ggml_diag_mask_inf.

    >>> diag_mask_inf(tensor([[1.0, 2.0], [3.0, 4.0]])).numpy()
    array([[  1., -inf],
           [  3.,   4.]], dtype=float32)
    """
    return _mask_result("diag_mask_inf", x, n_past)


@op(
    lower=_lower_mask(0.0),
    vjp=(_visible_grad,),
    reference=_mask_reference(0.0),
    samples=_mask_sample,
    error_samples=lambda: _mask_errors("diag_mask_zero"),
    inplace=(0,),
    cost=0.0,
    family="softmax",
)
def diag_mask_zero(x: Tensor, n_past: int = 0) -> Result:
    """Row i keeps its columns up to n_past + i, the rest become 0; as `diag_mask_inf` otherwise.

    Gradient: with respect to `x`. Source: ggml_diag_mask_zero.

    >>> diag_mask_zero(tensor([[1.0, 2.0], [3.0, 4.0]])).numpy()
    array([[1., 0.],
           [3., 4.]], dtype=float32)
    """
    return _mask_result("diag_mask_zero", x, n_past)
