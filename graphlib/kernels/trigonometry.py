"""Sine and cosine for kernels, of any float32 however far from 0; vectorised like math.py."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numba.extending import overload

from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.math import OPTIONS, by_type

_F = np.float32
_ONE, _HALF = _F(1), _F(0.5)
_INF, _NAN = _F(np.inf), _F(np.nan)
_PI = 3141592653589793238462643383279502884197169399375105820974944592307816406286  # 10^-75
# Bits of 2/pi from 2^-27 down, in words of 32.
_BITS = (2 * 10**75 << (26 + 7 * 32 - 52)) // _PI
_W0, _W1, _W2, _W3, _W4, _W5, _W6 = (
    np.uint32(_BITS >> 32 * (6 - k) & 0xFFFFFFFF) for k in range(7)
)
_NO_TURN, _QUARTER = np.int32(0), np.int32(1)
_ROUNDER, _SIGN = _F(1.5 * 2**23), np.int32(-(2**31))
_ROUNDER_BITS = np.int32(_ROUNDER.view(np.int32))
_RADIANS = math.pi / 2**63  # of one 2^64th of a turn


def _quarters() -> Iterator[Any]:
    """pi/2 in parts: three of 13 bits, so that products with up to 11 bits are exact, the rest."""
    rest = Fraction(_PI, 2 * 10**75)
    for _ in range(3):
        unit = Fraction(2) ** (math.frexp(float(rest))[1] - 13)
        part = rest // unit * unit
        yield _F(float(part))
        rest -= part
    yield _F(float(rest))


_QUARTERS = tuple(_quarters())
_NEAR = np.int32(_F(3200.0).view(np.int32))  # below 2^11 quarter turns


def sin(x: Any) -> Any:
    """Sine of x radians, for kernels: at most 2.4 ulp for every float32; NaN at infinity."""
    raise NotImplementedError


def cos(x: Any) -> Any:
    """Cosine of x radians, for kernels: at most 2.4 ulp for every float32; NaN at infinity."""
    raise NotImplementedError


@overload(sin, jit_options=OPTIONS)
def _sin(x):
    return by_type(x, lambda x: _sine(x, _NO_TURN), np.sin)


@overload(cos, jit_options=OPTIONS)
def _cos(x):
    return by_type(x, lambda x: _sine(x, _QUARTER), np.cos)


@for_kernels(**OPTIONS)
def _sine(x, quarter_turns):
    bits = np.int32(_F(x).view(np.int32) & np.int32(0x7FFFFFFF))
    near_r, near_n = _near(x)
    far_r, far_n = _far(x)
    # Chosen by masks: LLVM might make branches of choices, and the loop scalar.
    is_far = np.int32(np.int32(_NEAR - bits) >> np.int32(31))
    near_bits, far_bits = _F(near_r).view(np.int32), _F(far_r).view(np.int32)
    r = np.int32(_chosen(is_far, far_bits, near_bits)).view(np.float32)
    y = turned_sine(r, _chosen(is_far, far_n, near_n) + quarter_turns)
    return y if bits < np.int32(0x7F800000) else _NAN


@for_kernels(**OPTIONS)
def _chosen(mask, x, y):
    return np.int32(np.int32(x & mask) | np.int32(y & np.int32(~mask)))


@for_kernels(**OPTIONS)
def _near(x):
    """r and n with x = r + n · pi/2, for a float32 up to `_NEAR` from 0."""
    shifted = _F(x * _F(2 / math.pi) + _ROUNDER)  # its last bits are the nearest integer
    n = _F(shifted - _ROUNDER)
    r = _F(_F(x - n * _QUARTERS[0]) - n * _QUARTERS[1])  # exact
    r = _F(_F(r - n * _QUARTERS[2]) - n * _QUARTERS[3])
    return r, np.int32(shifted.view(np.int32) - _ROUNDER_BITS)


@for_kernels(**OPTIONS)
def rarity(x):
    """Negative unless a float32 is near enough to 0 for the fast formulas."""
    return np.int32(_NEAR - np.int32(_F(x).view(np.int32) & np.int32(0x7FFFFFFF)))


@for_kernels(**OPTIONS)
def near_sin(x, p0, p1, p2, p3):
    """`sin` of a float32 near 0."""
    r, n = _near(x)
    return turned_sine(r, n)


@for_kernels(**OPTIONS)
def near_cos(x, p0, p1, p2, p3):
    """`cos` of a float32 near 0."""
    r, n = _near(x)
    return turned_sine(r, n + _QUARTER)


@for_kernels(**OPTIONS)
def _far(x):
    """The same for every float32."""
    # |x| = m 2^s with 2^23 <= m < 2^24. Of 2/pi those bits count whose product with m is less
    # than four quarter turns and not too small: 96 of them, 26 + s behind the first (Payne and
    # Hanek), taken from words that are chosen without looking into memory.
    bits = np.int32(_F(x).view(np.int32) & np.int32(0x7FFFFFFF))
    mantissa = np.int32(np.int32(bits & np.int32(0x7FFFFF)) | np.int32(0x800000))
    at = np.int32(np.int32(bits >> np.int32(23)) - np.int32(126))
    at = np.int32(at & np.int32(~np.int32(at >> np.int32(31))))  # at least 0
    is_last = np.int32(np.int32(at >> np.int32(7)) & np.int32(1))  # a binade too many for 7 bits
    m = np.uint32(np.int32(mantissa << is_last))
    at = np.int32(at - is_last)
    odd, upper = (at & np.int32(32)) != np.int32(0), (at & np.int32(64)) != np.int32(0)
    v0, v1, v2 = _W1 if odd else _W0, _W2 if odd else _W1, _W3 if odd else _W2
    v3, v4, v5 = _W4 if odd else _W3, _W5 if odd else _W4, _W6 if odd else _W5
    u0, u1 = v2 if upper else v0, v3 if upper else v1
    u2, u3 = v4 if upper else v2, v5 if upper else v3
    shift = np.uint32(at & np.int32(31))
    a0, a1, a2 = _funnel(u0, u1, shift), _funnel(u1, u2, shift), _funnel(u2, u3, shift)
    # 2^64ths of a turn; the nearest quarter turn leaves at most pi/4.
    wide = np.uint64(m)
    high = np.uint64(np.uint64(np.uint32(m * a0)) << np.uint64(32))
    turn = np.uint64(high + wide * np.uint64(a1) + (wide * np.uint64(a2) >> np.uint64(32)))
    shifted = np.uint64(turn + np.uint64(1 << 61))
    rest = np.int64(np.int64(shifted & np.uint64((1 << 62) - 1)) - np.int64(1 << 61))
    r = _F(np.float64(rest) * _RADIANS)
    n = np.int32(np.uint32(shifted >> np.uint64(62)))
    sign = np.int32(_F(x).view(np.int32) >> np.int32(31))
    r = np.int32(_F(r).view(np.int32) ^ np.int32(sign & _SIGN)).view(np.float32)
    return r, np.int32(np.int32(n ^ sign) - sign)


@for_kernels(**OPTIONS)
def _funnel(high, low, shift):
    """The upper word of two uint32 that are shifted left together, by less than 32."""
    below = np.uint32(np.uint32(low >> np.uint32(1)) >> np.uint32(np.uint32(31) - shift))
    return np.uint32(np.uint32(high << shift) | below)


@for_kernels(**OPTIONS)
def turned_sine(r, quarters):
    """Sine of r + quarters · pi/2 for a float32 |r| <= pi/4 and an int32, for kernels."""
    z = _F(r * r)
    is_cosine = (quarters & np.int32(1)) != np.int32(0)
    p = _F(2.44324128e-05) if is_cosine else _F(-0.00019514632)
    p = _F(p * z + (_F(-0.00138873095) if is_cosine else _F(0.00833215564)))
    p = _F(p * z + (_F(0.0416666456) if is_cosine else _F(-0.166666552)))
    first = _F(_ONE - _HALF * z) if is_cosine else r
    y = _F(p * _F(z * (z if is_cosine else r)) + first)
    sign = np.int32(np.int32(quarters << np.int32(30)) & _SIGN)  # every second half turn
    return np.int32(y.view(np.int32) ^ sign).view(np.float32)
