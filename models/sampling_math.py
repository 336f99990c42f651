"""Exponential, logarithm and sums that give the same bits on every machine.

NumPy's own take another code path on processors with wider vectors, and differ in the last bit
there; that bit can decide which token is drawn. Here every step is one rounded addition,
multiplication or division, in an order that the source fixes.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LOG2_E: Final = float.fromhex("0x1.71547652b82fep+0")
# ln 2 in two parts; the first has 32 bits, so that its product with an exponent is exact.
_LN2_HIGH: Final = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW: Final = float.fromhex("0x1.a39ef35793c76p-33")
_ROOT_HALF: Final = float.fromhex("0x1.6a09e667f3bcdp-1")
LN2: Final = float.fromhex("0x1.62e42fefa39efp-1")
_SMALLEST: Final = -708.0  # beyond these, exp(x) is no normal number
_LARGEST: Final = 709.0

# Taylor: 13 terms leave 4e-18 for |x| <= ln(2) / 2.
_EXP_TERMS: Final = [1.0]
for _k in range(1, 14):
    _EXP_TERMS.append(_EXP_TERMS[-1] / _k)
# log((1 + s) / (1 - s)) = 2 (s + s^3/3 + s^5/5 + …): 12 terms leave 1e-19 for |s| <= 0.172.
_LOG_TERMS: Final = [2.0 / (2 * k + 1) for k in range(12)]


def exp(x: Floats | float) -> Floats:
    """e^x of each value, with an error of at most 3e-16 of it; 0 below -708, e^709 above 709.

    >>> exp(np.array([0.0, 1.0, -np.inf])).round(12).tolist()
    [1.0, 2.718281828459, 0.0]
    """
    inside = np.clip(np.asarray(x), _SMALLEST, _LARGEST)
    power = np.rint(inside * _LOG2_E)
    rest = (inside - power * _LN2_HIGH) - power * _LN2_LOW
    powers: Floats = np.ldexp(_horner(_EXP_TERMS, rest), power.astype(np.int64))
    return powers * (x >= _SMALLEST)


def log(x: Floats | float) -> Floats:
    """Natural logarithm of positive finite values, with an error of at most 3e-16 of it.

    >>> log(np.array([1.0, 10.0])).tolist()
    [0.0, 2.302585092994046]
    """
    mantissa, power = np.frexp(np.asarray(x))
    is_low = mantissa < _ROOT_HALF
    mantissa, power = np.where(is_low, 2 * mantissa, mantissa), power - is_low
    s = (mantissa - 1) / (mantissa + 1)
    result: Floats = power * _LN2_HIGH + (s * _horner(_LOG_TERMS, s * s) + power * _LN2_LOW)
    return result


@lru_cache(maxsize=64)
def log_of(x: float) -> float:
    """Natural logarithm of one number; settings are asked for with every token.

    >>> log_of(10.0)
    2.302585092994046
    """
    return float(log(x))


def power(x: float, exponent: float) -> float:
    """x^exponent for x >= 0; at most e^709.

    >>> power(2.0, 0.5), power(0.0, 2.0), power(0.0, 0.0)
    (1.414213562373095, 0.0, 1.0)
    """
    if exponent == 0:
        return 1.0
    return float(exp(exponent * log_of(x))) if x > 0 else 0.0


def total(x: Floats) -> float:
    """The sum, added from left to right; `np.sum` adds in an order of its own.

    >>> total(np.array([1e16, 1.0, -1e16]))
    0.0
    """
    return float(np.cumsum(x)[-1])


def soft_max(scores: Floats) -> Floats:
    """Probabilities of scores, which may be -inf but not all of them.

    >>> soft_max(np.array([0.0, 0.0, -np.inf])).tolist()
    [0.5, 0.5, 0.0]
    """
    powers = exp(scores - scores.max())
    probabilities: Floats = powers / total(powers)
    return probabilities


def entropy(probabilities: Floats) -> float:
    """-sum(p log p), in nats.

    >>> entropy(np.array([0.5, 0.5, 0.0])) == LN2
    True
    """
    some = probabilities[probabilities > 0]
    return -total(some * log(some))


def _horner(terms: list[float], x: Floats) -> Floats:
    result = np.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        result *= x
        result += term
    return result
