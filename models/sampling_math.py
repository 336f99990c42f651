"""Exponential, logarithm and sums that give the same bits on every machine.

NumPy's own take another code path on processors with wider vectors, and differ in the last bit
there; see `kernels.chances`, which this agrees with bit for bit.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.kernels.chances import (
    BEST_FIRST,
    EXP_TERMS,
    LARGEST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    SMALLEST,
    SOFT_MAX,
)
from yupana.graphlib.kernels.compiler import Kernel, function_type, ready

Floats = NDArray[np.float64]

_ROOT_HALF: Final = float.fromhex("0x1.6a09e667f3bcdp-1")
LN2: Final = float.fromhex("0x1.62e42fefa39efp-1")
# log((1 + s) / (1 - s)) = 2 (s + s^3/3 + s^5/5 + …): 12 terms leave 1e-19 for |s| <= 0.172.
_LOG_TERMS: Final = [2.0 / (2 * k + 1) for k in range(12)]


def exp(x: Floats | float) -> Floats:
    """e^x of each value, with an error of at most 3e-16 of it; 0 below -708, e^709 above 709.

    >>> exp(np.array([0.0, 1.0, -np.inf])).round(12).tolist()
    [1.0, 2.718281828459, 0.0]
    """
    inside = np.clip(np.asarray(x), SMALLEST, LARGEST)
    power = np.rint(inside * LOG2_E)
    rest = (inside - power * LN2_HIGH) - power * LN2_LOW
    powers: Floats = np.ldexp(_horner(EXP_TERMS, rest), power.astype(np.int64))
    return powers * (x >= SMALLEST)


def log(x: Floats | float) -> Floats:
    """Natural logarithm of positive finite values, with an error of at most 3e-16 of it.

    >>> log(np.array([1.0, 10.0])).tolist()
    [0.0, 2.302585092994046]
    """
    mantissa, power = np.frexp(np.asarray(x))
    is_low = mantissa < _ROOT_HALF
    mantissa, power = np.where(is_low, 2 * mantissa, mantissa), power - is_low
    s = (mantissa - 1) / (mantissa + 1)
    result: Floats = power * LN2_HIGH + (s * _horner(_LOG_TERMS, s * s) + power * LN2_LOW)
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
    scores = np.ascontiguousarray(scores, np.float64)
    probabilities = np.empty(len(scores))
    _loop(SOFT_MAX)(_address(scores), _address(probabilities), len(scores), 0)
    return probabilities


def best_first(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], bool]:
    """Places of the `k` best of more scores, of equal ones the first first; whether one is NaN.

    >>> best_first(np.float32([1, 3, 2, 3]), 3)
    (array([1, 3, 2]), False)
    """
    found = np.empty(2 * k + 1, np.int64)
    _loop(BEST_FIRST)(_address(scores), _address(found), len(scores), k)
    return found[:k], bool(found[2 * k])


def prepare() -> None:
    """Have the loops compiled before anything is timed."""
    ready([SOFT_MAX, BEST_FIRST])


def _address(array: NDArray[Any]) -> int:
    """Of its first byte; `array.ctypes` takes longer."""
    address: int = array.__array_interface__["data"][0]
    return address


@cache
def _loop(kernel: Kernel) -> Callable[..., None]:
    run: Callable[..., None] = function_type(4)(kernel.address)
    return run


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
