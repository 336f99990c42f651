"""Gated linear units: one half, or one tensor, activated and multiplied with the other.

They are composed of ops; silu and its product run as one pass in compiled programs (fusion.py).
"""

from collections.abc import Callable

import numpy as np

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.ops._rules import need_axes, need_float, need_same_shape
from yupana.graphlib.ops.activation import relu, sigmoid
from yupana.graphlib.ops.arithmetic import add, mul, scale
from yupana.graphlib.ops.clip import clamp
from yupana.graphlib.ops.gates import gelu_quick, silu
from yupana.graphlib.ops.gaussian import gelu, gelu_erf
from yupana.graphlib.ops.slices import index
from yupana.graphlib.tensor import Tensor


def _halves(name: str, x: Tensor, swapped: bool, gate: Callable[[Tensor], Tensor]) -> Tensor:
    need_float(name, x)
    need_axes(name, x, 1)
    n = x.shape[-1]
    if n % 2:
        raise ShapeError(f"{name}: last axis is odd: got {x.shape}, want two halves of one size")
    first, second = index(x, np.s_[..., : n // 2]), index(x, np.s_[..., n // 2 :])
    return mul(gate(second), first) if swapped else mul(gate(first), second)


def _split(name: str, a: Tensor, b: Tensor, gate: Callable[[Tensor], Tensor]) -> Tensor:
    need_float(name, a, b)
    need_same_shape(name, a, b)
    return mul(gate(a), b)


def reglu(x: Tensor, swapped: bool = False) -> Tensor:
    """ReLU of the first half of each row times the second half.

    Args:
        x: (…, 2F) float.
        swapped: activates the second half instead.
    Returns:
        (…, F).
    Raises:
        ShapeError: the last axis is odd.
    Gradient: with respect to `x`. Source: Shazeer 2020; ggml_reglu, ggml_reglu_swapped.

    >>> reglu(tensor([1.0, -2.0, 3.0, 4.0])).numpy()
    array([3., 0.], dtype=float32)
    """
    return _halves("reglu", x, swapped, relu)


def geglu(x: Tensor, swapped: bool = False) -> Tensor:
    """`gelu` of the first half of each row times the second half; see `reglu`.

    Gradient: with respect to `x` (ggml has none). Source: Shazeer 2020; ggml_geglu.

    >>> geglu(tensor([1.0, 2.0, 3.0, 4.0])).numpy().round(3)
    array([2.524, 7.818], dtype=float32)
    """
    return _halves("geglu", x, swapped, gelu)


def geglu_erf(x: Tensor, swapped: bool = False) -> Tensor:
    """`gelu_erf` of the first half of each row times the second half; see `reglu`.

    Gradient: with respect to `x` (ggml has none). Source: ggml_geglu_erf.

    >>> geglu_erf(tensor([1.0, 2.0, 3.0, 4.0])).numpy().round(3)
    array([2.524, 7.818], dtype=float32)
    """
    return _halves("geglu_erf", x, swapped, gelu_erf)


def geglu_quick(x: Tensor, swapped: bool = False) -> Tensor:
    """`gelu_quick` of the first half of each row times the second half; see `reglu`.

    Gradient: with respect to `x` (ggml has none). Source: ggml_geglu_quick.

    >>> geglu_quick(tensor([1.0, 2.0, 3.0, 4.0])).numpy().round(3)
    array([2.537, 7.743], dtype=float32)
    """
    return _halves("geglu_quick", x, swapped, gelu_quick)


def swiglu(x: Tensor, swapped: bool = False) -> Tensor:
    """`silu` of the first half of each row times the second half; see `reglu`.

    Gradient: with respect to `x` (ggml's has one in the split form only).
    Source: Shazeer 2020; ggml_swiglu.

    >>> swiglu(tensor([1.0, 2.0, 3.0, 4.0])).numpy().round(3)
    array([2.193, 7.046], dtype=float32)
    """
    return _halves("swiglu", x, swapped, silu)


def reglu_split(a: Tensor, b: Tensor) -> Tensor:
    """ReLU of `a` times `b`, element by element.

    Args:
        a, b: float, of the same shape.
    Raises:
        ShapeError: the shapes differ.
    Gradient: with respect to both. Source: Shazeer 2020; ggml_reglu_split.

    >>> reglu_split(tensor([1.0, -2.0]), tensor([3.0, 4.0])).numpy()
    array([3., 0.], dtype=float32)
    """
    return _split("reglu_split", a, b, relu)


def geglu_split(a: Tensor, b: Tensor) -> Tensor:
    """`gelu` of `a` times `b`; see `reglu_split`.

    Gradient: with respect to both (ggml has none). Source: Shazeer 2020; ggml_geglu_split.

    >>> geglu_split(tensor([1.0, 2.0]), tensor([3.0, 4.0])).numpy().round(3)
    array([2.524, 7.818], dtype=float32)
    """
    return _split("geglu_split", a, b, gelu)


def geglu_erf_split(a: Tensor, b: Tensor) -> Tensor:
    """`gelu_erf` of `a` times `b`; see `reglu_split`.

    Gradient: with respect to both (ggml has none). Source: ggml_geglu_erf_split.

    >>> geglu_erf_split(tensor([1.0, 2.0]), tensor([3.0, 4.0])).numpy().round(3)
    array([2.524, 7.818], dtype=float32)
    """
    return _split("geglu_erf_split", a, b, gelu_erf)


def geglu_quick_split(a: Tensor, b: Tensor) -> Tensor:
    """`gelu_quick` of `a` times `b`; see `reglu_split`.

    Gradient: with respect to both (ggml has none). Source: ggml_geglu_quick_split.

    >>> geglu_quick_split(tensor([1.0, 2.0]), tensor([3.0, 4.0])).numpy().round(3)
    array([2.537, 7.743], dtype=float32)
    """
    return _split("geglu_quick_split", a, b, gelu_quick)


def swiglu_split(a: Tensor, b: Tensor) -> Tensor:
    """`silu` of `a` times `b`; see `reglu_split`.

    Gradient: with respect to both. Source: Shazeer 2020; ggml_swiglu_split.

    >>> swiglu_split(tensor([1.0, 2.0]), tensor([3.0, 4.0])).numpy().round(3)
    array([2.193, 7.046], dtype=float32)
    """
    return _split("swiglu_split", a, b, silu)


def swiglu_oai(a: Tensor, b: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """The gate of gpt-oss: u · sigmoid(alpha u) · (v + 1), with u and v limited.

    Args:
        a, b: float, of the same shape.
        alpha: slope of the gate.
        limit: u = min(a, limit), v = b limited to [-limit, limit].
    Raises:
        ShapeError: the shapes differ. SettingError: the limit is negative.
    Gradient: with respect to both (ggml has none). Source: ggml_swiglu_oai.

    >>> swiglu_oai(tensor([1.0, 9.0]), tensor([3.0, -8.0])).numpy().round(3)
    array([  3.383, -42.   ], dtype=float32)
    """
    need_float("swiglu_oai", a, b)
    need_same_shape("swiglu_oai", a, b)
    if not limit >= 0:
        raise SettingError(f"swiglu_oai: got limit={limit}, want a number that is not negative")
    u, v = clamp(a, -np.inf, limit), clamp(b, -limit, limit)
    gated = mul(u, sigmoid(scale(u, alpha)))
    return add(gated, mul(gated, v))
