"""Activation functions for kernels: x times a number between 0 and 1, vectorised like math.py.

Far below 0 these functions are an exponential times x. Both its argument and the product keep
their digits there, down to denormal results: an argument near -100 that is rounded to float32
would put the result off by fifty ulp.
"""

import math as library
from typing import Any

import numpy as np
from numba.extending import overload

from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.math import OPTIONS, by_type, exp_parts, scale_by_exponent

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LOG2E, _LN2 = 1.4426950408889634, 0.6931471805599453
_ROUNDER = 1.5 * 2.0**52  # adding it leaves no bits behind the point
# From here on down the float nearest to x / (1 + e^-t) is 0 for t = x.
_SILU_END = _F(-110)
_GELU_A = 2 * library.sqrt(2 / library.pi)
_GELU_B = 0.044715 * _GELU_A
_GELU_END = _F(-11)  # the argument there is -112
_QUICK, _QUICK_END = 1.702, _F(-65)
_NORMAL_END = _F(-14.6)  # x times the normal distribution function is 0 from here on down
_INVERSE_ROOT = 0.3989422804014327  # 1 / sqrt(2 pi)


def silu(x: Any) -> Any:
    """x / (1 + e^-x), for kernels: at most 3.3 ulp in float32; -0 at -inf."""
    raise NotImplementedError


def gelu(x: Any) -> Any:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) / 2, for kernels: at most 3.5 ulp in float32."""
    raise NotImplementedError


def gelu_quick(x: Any) -> Any:
    """x / (1 + e^(-1.702 x)), for kernels: at most 3.4 ulp in float32."""
    raise NotImplementedError


def gelu_erf(x: Any) -> Any:
    """x times the normal distribution function, for kernels: at most 2 ulp in float32."""
    raise NotImplementedError


def normal_cdf(x: Any) -> Any:
    """The normal distribution function (1 + erf(x / sqrt(2))) / 2, for kernels."""
    raise NotImplementedError


@for_kernels(**OPTIONS)
def cut_off(x, end):
    """x cut to [end, -end], for kernels; `end` is negative."""
    return end if x < end else (-end if x > -end else x)


@for_kernels(**OPTIONS)
def _exp_parts_of_wide(t):
    """A float32 p and an int32 k with e^t = p 2^k, for a float64 |t| < 150."""
    shifted = np.float64(t * _LOG2E + _ROUNDER)
    r = _F(t - (shifted - _ROUNDER) * _LN2)
    p = _F(0.00138144672)
    p = _F(p * r + _F(0.00836878084))
    p = _F(p * r + _F(0.0416683927))
    p = _F(p * r + _F(0.166665196))
    p = _F(p * r + _F(0.49999994))
    p = _F(_F(p * _F(r * r) + r) + _ONE)
    return p, np.int32(shifted.view(np.int64))


@for_kernels(**OPTIONS)
def _gated(x, is_negative, p, k):
    """x / (1 + e^-t) for the parts p 2^k of e^-|t|; `x` limited where t is negative."""
    least = np.int32(-126) if k < np.int32(-126) else k  # 1 + e^-|t| is 1 long before
    d = _F(_ONE + p * np.int32(np.int32(least + np.int32(127)) << np.int32(23)).view(np.float32))
    y = _F((_F(x * p) if is_negative else x) / d)
    return scale_by_exponent(y, k if is_negative else np.int32(0))


@overload(silu, jit_options=OPTIONS)
def _silu(x):
    return by_type(x, _silu_f32, _silu_f64)


def _silu_f32(x):
    limited = cut_off(x, _SILU_END)
    p, k = exp_parts(_F(-abs(limited)))
    is_negative = x < _ZERO
    return _gated(limited if is_negative else x, is_negative, p, k)


@for_kernels(**OPTIONS)
def _silu_f64(x):
    return _gated_f64(x, x)


@for_kernels(**OPTIONS)
def _gated_f64(x, t):
    # e^-750 is 0 in float64, and times -inf would be NaN.
    return 0.0 * t if t < -750.0 else x / (1.0 + np.exp(-t))


@overload(gelu, jit_options=OPTIONS)
def _gelu(x):
    return by_type(x, _gelu_f32, _gelu_f64)


def _gelu_f32(x):
    limited = cut_off(x, _GELU_END)
    wide = np.float64(limited)
    p, k = _exp_parts_of_wide(-abs(wide * (_GELU_A + _GELU_B * (wide * wide))))
    is_negative = x < _ZERO
    return _gated(limited if is_negative else x, is_negative, p, k)


@for_kernels(**OPTIONS)
def _gelu_f64(x):
    return _gated_f64(x, x * (_GELU_A + _GELU_B * (x * x)))


@overload(gelu_quick, jit_options=OPTIONS)
def _gelu_quick(x):
    return by_type(x, _gelu_quick_f32, _gelu_quick_f64)


def _gelu_quick_f32(x):
    limited = cut_off(x, _QUICK_END)
    p, k = _exp_parts_of_wide(-abs(np.float64(limited) * _QUICK))
    is_negative = x < _ZERO
    return _gated(limited if is_negative else x, is_negative, p, k)


@for_kernels(**OPTIONS)
def _gelu_quick_f64(x):
    return _gated_f64(x, _QUICK * x)


@for_kernels(**OPTIONS)
def _normal_parts(x):
    """The normal distribution function of a float32 as a float64."""
    limited = np.float64(cut_off(x, _NORMAL_END))
    a = abs(limited)
    p, k = _exp_parts_of_wide(-0.5 * (limited * limited))
    exponential = np.float64(p) * np.int64(np.int64(k + np.int32(1023)) << 52).view(np.float64)
    # What is left of the tail is a smooth function: P(a) / Q(a), to 1e-8 of it.
    n = 0.004123696937367616
    n = n * a + 0.04068297978873372
    n = n * a + 0.1833827083137637
    n = n * a + 0.4384941190721795
    n = n * a + 0.5000000029918905
    d = 0.010336457282382921
    d = d * a + 0.10198348602961503
    d = d * a + 0.4698602157449333
    d = d * a + 1.2031160618260224
    d = d * a + 1.6748732243295794
    d = d * a + 1.0
    tail = exponential * (n / d)
    return tail if x < _ZERO else 1.0 - tail


@overload(normal_cdf, jit_options=OPTIONS)
def _normal_cdf(x):
    return by_type(x, lambda x: _F(_normal_parts(x)), _normal_cdf_f64)


@for_kernels(**OPTIONS)
def _normal_cdf_f64(x):
    return 0.5 * library.erfc(-0.7071067811865476 * x)


@overload(gelu_erf, jit_options=OPTIONS)
def _gelu_erf(x):
    return by_type(x, _gelu_erf_f32, _gelu_erf_f64)


def _gelu_erf_f32(x):
    limited = _NORMAL_END if x < _NORMAL_END else x
    return _F(np.float64(limited) * _normal_parts(x))


@for_kernels(**OPTIONS)
def _gelu_erf_f64(x):
    return -0.0 if x < -40.0 else x * _normal_cdf_f64(x)
