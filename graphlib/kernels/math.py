"""Mathematical functions for kernels: vectorised by LLVM in the caller's loop for float32.

numba's ``np.exp`` is a call of the C library per element. The functions here are polynomials
without branches, so a loop over them becomes vector code. They exist inside compiled code only;
float64 goes to the C library (float64 is for tests, not for speed).

They keep floating-point flags of their own when they are inlined: a caller compiled with
``reassoc`` would otherwise undo the range reductions (exp then errs by 4.5 instead of 1 ulp).
Coefficients are minimax fits in float64, rounded to float32.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from yupana.graphlib.kernels.for_kernels import ALONE, for_kernels

# Inlining is forced because a call left in a loop keeps the loop from being vectorised.
OPTIONS = {
    "fastmath": {"contract", "nsz"},
    "error_model": "numpy",
    "forceinline": True,
    **ALONE,
}

LOWEST = -87.0  # e to this power is just a normal float32

# Numbers in float32 expressions must be float32, or numba computes in float64.
_F = np.float32
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
_INF, _NAN = _F(np.inf), _F(np.nan)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
_SIGN = np.int32(-(2**31))
_ROUNDER = _F(1.5 * 2**23)  # adding it leaves no bits behind the point
_ROUNDER_BITS = np.int32(_ROUNDER.view(np.int32))

_LOG2E = _F(1.4426950408889634)
# ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.1219444005469057e-4)


def exp(x: Any) -> Any:
    """e to the power x, for kernels: at most 1.1 ulp in float32, denormal results included."""
    raise NotImplementedError


def log(x: Any) -> Any:
    """Natural logarithm, for kernels: at most 1 ulp in float32; -inf at 0, NaN below."""
    raise NotImplementedError


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x), for kernels: at most 2 ulp in float32, denormal results included."""
    raise NotImplementedError


def tanh(x: Any) -> Any:
    """Hyperbolic tangent, for kernels: at most 2.6 ulp in float32."""
    raise NotImplementedError


def erf(x: Any) -> Any:
    """Error function, for kernels: at most 2 ulp in float32."""
    raise NotImplementedError


def expm1(x: Any) -> Any:
    """e to the power x, less 1, for kernels: at most 2 ulp in float32, near 0 too."""
    raise NotImplementedError


def softplus(x: Any) -> Any:
    """log(1 + e^x), for kernels: at most 2 ulp in float32, denormal results included."""
    raise NotImplementedError


def row_max(x: Any) -> Any:
    """Largest of a contiguous float32 or float64 array, for kernels; vectorised.

    NaN if there is one; -inf for an empty array.
    """
    raise NotImplementedError


def by_type(x: Any, f32: Callable[..., Any], library: Callable[..., Any]) -> Any:
    """What an overload returns for numba type `x`: `f32`, or a call of `library` in float64."""
    # numba wants a Python function with the stub's arguments, not the ufunc itself.
    return f32 if x == types.float32 else lambda x: library(x)  # noqa: PLW0108


@overload(exp, jit_options=OPTIONS)
def _exp(x):
    return by_type(x, _exp_f32, np.exp)


def _exp_f32(x):
    # exp(x) = 2^k exp(r), |r| <= ln(2)/2. Beyond the bounds the result is 0 or inf anyway.
    x = _F(89) if x > _F(89) else x
    x = _F(-104) if x < _F(-104) else x
    p, k = exp_parts(x)
    return scale_by_exponent(p, k)


@for_kernels(**OPTIONS)
def exp_parts(x):
    """A float32 p near 1 and an int32 k with e^x = p 2^k, for a float32 |x| < 120, for kernels."""
    p, r, k = _exp_reduced(x)
    return _F(_F(p + r) + _ONE), k


@for_kernels(**OPTIONS)
def _exp_reduced(x):
    """p, r and k with e^x = 2^k (1 + r + p)."""
    shifted = _F(x * _LOG2E + _ROUNDER)  # its last bits are the nearest integer
    n = _F(shifted - _ROUNDER)
    a = _F(x - n * _LN2_HIGH)  # exact
    r = _F(a - n * _LN2_LOW)
    rest = _F(_F(a - r) - n * _LN2_LOW)  # what rounding r lost
    p = _F(0.00138144672)
    p = _F(p * r + _F(0.00836878084))
    p = _F(p * r + _F(0.0416683927))
    p = _F(p * r + _F(0.166665196))
    p = _F(p * r + _F(0.49999994))
    p = _F(p * _F(r * r) + rest)
    return p, r, np.int32(shifted.view(np.int32) - _ROUNDER_BITS)


@for_kernels(**OPTIONS)
def scale_by_exponent(x, k):
    """x 2^k of a float32 and an int32 |k| < 200, for kernels."""
    # In two factors: one alone could not reach the denormals nor the largest float.
    k1 = np.int32(k >> np.int32(1))
    k2 = np.int32(k - k1)
    s1 = np.int32(np.int32(k1 + _BIAS) << _MANTISSA_BITS).view(np.float32)
    s2 = np.int32(np.int32(k2 + _BIAS) << _MANTISSA_BITS).view(np.float32)
    return _F(_F(x * s1) * s2)


@overload(expm1, jit_options=OPTIONS)
def _expm1(x):
    return by_type(x, _expm1_f32, np.expm1)


def _expm1_f32(x):
    # 2^k (e^r - 1) + (2^k - 1); half of it, because 2^128 is no float.
    limited = _F(89) if x > _F(89) else (_F(-30) if x < _F(-30) else x)
    p, r, k = _exp_reduced(limited)
    less = _F(p + r)
    half = np.int32(np.int32(k + np.int32(126)) << _MANTISSA_BITS).view(np.float32)
    y = _F(half * less + _F(half - _HALF))
    return less if k == np.int32(0) else _F(y + y)


@overload(log, jit_options=OPTIONS)
def _log(x):
    return by_type(x, _log_f32, np.log)


def _log_f32(x):
    is_tiny = x < _F(1.17549435e-38)  # denormals have no leading bit: scale by 2^23 first
    y = _log_of_normal(_F(x * (_F(8388608) if is_tiny else _ONE)), _F(23) if is_tiny else _ZERO)
    y = y if x < _INF else x  # inf and NaN stay
    y = _NAN if x < _ZERO else y
    return -_INF if x == _ZERO else y


@for_kernels(**OPTIONS)
def _log_of_normal(x, less):
    """log(x) - less · log(2) of a positive, normal float32."""
    # x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log1p(f) = f - f^2/2 + f^3 P(f).
    start = np.int32(0x3F3504F3)  # sqrt(1/2)
    above = np.int32(_F(x).view(np.int32) - start)
    k = np.int32(above >> _MANTISSA_BITS)
    f = _F(np.int32(np.int32(above & np.int32(0x7FFFFF)) + start).view(np.float32) - _ONE)
    return _log_of_sum(f, _F(k) - less)


@for_kernels(**OPTIONS)
def usual_log(x, p0, p1, p2, p3):
    """`log` of a positive, normal float32."""
    return _log_of_normal(x, _ZERO)


@for_kernels(**OPTIONS)
def log_rarity(x):
    """Negative unless a float32 is positive, normal and finite."""
    bits = _F(x).view(np.int32)  # where they are negative, one of the differences overflows
    return np.int32(np.int32(bits - np.int32(0x00800000)) | np.int32(np.int32(0x7F7FFFFF) - bits))


@for_kernels(**OPTIONS)
def _log_of_sum(f, n):
    """log(1 + f) + n log(2) for float32, with 1 + f in [sqrt(1/2), sqrt(2)) and n whole."""
    p = _F(0.0674663857)
    p = _F(p * f - _F(0.116756514))
    p = _F(p * f + _F(0.118881628))
    p = _F(p * f - _F(0.124055892))
    p = _F(p * f + _F(0.142195523))
    p = _F(p * f - _F(0.166679963))
    p = _F(p * f + _F(0.200021192))
    p = _F(p * f - _F(0.250000089))
    p = _F(p * f + _F(0.333333135))
    square = _F(f * f)
    y = _F(p * _F(square * f) + n * _LN2_LOW)
    y = _F(_F(y - _HALF * square) + f)
    return _F(y + n * _LN2_HIGH)


@overload(softplus, jit_options=OPTIONS)
def _softplus(x):
    return by_type(x, _softplus_f32, _softplus_f64)


@for_kernels(**OPTIONS)
def _softplus_f64(x):
    return (x if x > 0.0 else 0.0) + np.log1p(np.exp(-abs(x)))


def _softplus_f32(x):
    e = exp(_F(-abs(x)))
    halves = e > _F(0.41421356)  # then 1 + e = 2 (1 + f); (e - 1) / 2 is exact
    f = _F(_F(e - _ONE) * _HALF) if halves else e
    y = _log_of_sum(f, _ONE if halves else _ZERO)
    return _F(y + x) if x > _ZERO else y


@overload(sigmoid, jit_options=OPTIONS)
def _sigmoid(x):
    return by_type(x, _sigmoid_f32, _sigmoid_f64)


@for_kernels(**OPTIONS)
def _sigmoid_f64(x):
    e = np.exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


def _sigmoid_f32(x):
    # exp of a negative number only: it cannot overflow, and small results keep their digits.
    is_negative = x < _ZERO
    e = exp(_F(-abs(x)))
    d = _F(_ONE + e)
    lost = _F(e - _F(d - _ONE))  # by rounding d; exact, and 0.5 ulp of the result
    y = _F((e if is_negative else _ONE) / d)
    inverse = _F(_ONE - y) if is_negative else y  # 1 / d
    return _F(y - y * _F(lost * inverse))


@overload(tanh, jit_options=OPTIONS)
def _tanh(x):
    return by_type(x, _tanh_f32, np.tanh)


def _tanh_f32(x):
    # (1 - e) / (1 + e) with e = e^-2|x|, from 1 - e; beyond 9.02 the nearest float is 1.
    a = _F(abs(x))
    a = _F(9.02) if a > _F(9.02) else a
    shifted = _F(a * _F(-2 * _LOG2E) + _ROUNDER)
    n = _F(shifted - _ROUNDER)
    r = _F(_F(_F(-2) * a - n * _LN2_HIGH) - n * _LN2_LOW)
    p = _F(0.00138144672)
    p = _F(p * r + _F(0.00836878084))
    p = _F(p * r + _F(0.0416683927))
    p = _F(p * r + _F(0.166665196))
    p = _F(p * r + _F(0.49999994))
    p = _F(p * _F(r * r) + r)  # e^r - 1
    k = np.int32(shifted.view(np.int32) - _ROUNDER_BITS)
    scale = np.int32(np.int32(k + _BIAS) << _MANTISSA_BITS).view(np.float32)
    less = _F(_F(_ONE - scale) - scale * p)
    y = _F(less / _F(_F(2) - less))
    sign = np.int32(_F(x).view(np.int32) & _SIGN)
    return np.int32(y.view(np.int32) | sign).view(np.float32)


@overload(erf, jit_options=OPTIONS)
def _erf(x):
    return by_type(x, _erf_f32, math.erf)


def _erf_f32(x):
    a = _F(abs(x))
    # 1 - exp(-P(a)), where P fits -log(erfc(a)); from 3.92 on the nearest float is 1.
    a = _F(3.93) if a > _F(3.93) else a
    p = _F(-0.000194777778)
    p = _F(p * a + _F(0.00303182076))
    p = _F(p * a - _F(0.0221813899))
    p = _F(p * a + _F(0.103836916))
    p = _F(p * a + _F(0.637290418))
    p = _F(p * a + _F(1.12761116))
    p = _F(p * a + _F(0.000211311999))
    far = _F(_ONE - exp(-p))
    # Near 0 that would cancel: x + x P(x^2).
    z = _F(a * a)
    p = _F(8.31677535e-05)
    p = _F(p * z - _F(0.000813001243))
    p = _F(p * z + _F(0.00519990688))
    p = _F(p * z - _F(0.0268589407))
    p = _F(p * z + _F(0.112836875))
    p = _F(p * z - _F(0.376126319))
    p = _F(p * z + _F(0.128379166))
    near = _F(p * a + a)
    y = near if a < _F(0.93) else far
    return -y if x < _ZERO else y


@overload(row_max, jit_options=OPTIONS)
def _row_max(x):
    real: Any
    integer: Any
    real, integer = (_F, np.int32) if x.dtype == types.float32 else (np.float64, np.int64)
    infinity = integer(np.array(np.inf, real).view(integer))
    magnitude, sign_shift = np.iinfo(integer).max, integer(np.iinfo(integer).bits - 1)
    magnitude, nan = integer(magnitude), real(np.nan)
    lowest = integer(-infinity - 1)  # the key of -inf

    def row_max_bits(x):
        # Loops over a float maximum stay scalar. The bits of floats, read as integers, are in
        # order once those of negative numbers are flipped; NaNs lie beyond infinity.
        bits = x.view(integer)
        best, farthest = lowest, integer(0)
        for i in range(bits.size):
            b = bits[i]
            size = integer(b & magnitude)
            key = integer(b ^ integer(integer(b >> sign_shift) & magnitude))
            best = key if key > best else best
            farthest = size if size > farthest else farthest
        largest = integer(best ^ integer(integer(best >> sign_shift) & magnitude))
        y = largest.view(real)
        return nan if farthest > infinity else y

    return row_max_bits
