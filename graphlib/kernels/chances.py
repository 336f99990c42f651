"""What tokens are drawn from: the best of many scores, and probabilities.

Probabilities are float64 with the same bits on every machine. The bits of a library's exponential
depend on the processor, and the last one can decide which token is drawn. Here every step is one
rounded addition, multiplication or division, in an order that the source fixes, and no option lets
a compiler fuse or rearrange them.
"""

from typing import Final

import numpy as np

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import f32_array, f64_array, i32_array, i64_array

LOG2_E: Final = float.fromhex("0x1.71547652b82fep+0")
# ln 2 in two parts; the first has 32 bits, so that its product with an exponent is exact.
LN2_HIGH: Final = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW: Final = float.fromhex("0x1.a39ef35793c76p-33")
SMALLEST: Final = -708.0  # beyond these, exp(x) is no normal number
LARGEST: Final = 709.0

# Taylor: 13 terms leave 4e-18 for |x| <= ln(2) / 2.
EXP_TERMS: Final = [1.0]
for _k in range(1, 14):
    EXP_TERMS.append(EXP_TERMS[-1] / _k)
_TERMS = np.array(EXP_TERMS[::-1])
_BIAS, _FRACTION_BITS = 1023, 52
# Of float32.
_MAGNITUDE, _INFINITY, _BELOW_ALL = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(-(2**31))
_GROUP = 128


def soft_max(source, target, n, _):
    """exp(x - largest) / sum of these, for `n` float64; below -708 it is 0."""
    x, y, bits = f64_array(source, n), f64_array(target, n), i64_array(target, n)
    largest = x[0]
    for i in range(1, n):
        largest = max(largest, x[i])
    for i in range(n):
        z = x[i] - largest
        inside = min(max(z, SMALLEST), LARGEST)
        power = np.rint(inside * LOG2_E)
        rest = (inside - power * LN2_HIGH) - power * LN2_LOW
        result = _TERMS[0]
        for k in range(1, _TERMS.size):
            result = result * rest
            result = result + _TERMS[k]
        bits[i] = (np.int64(power) + _BIAS) << _FRACTION_BITS
        y[i] = result * y[i] if z >= SMALLEST else 0.0
    total = y[0]
    for i in range(1, n):
        total += y[i]
    for i in range(n):
        y[i] /= total


@for_kernels(forceinline=True)
def _key(x):
    """An integer that is ordered as float32 are; zeros of both signs are equal."""
    bits = np.int32(np.float32(x + np.float32(0)).view(np.int32))
    return np.int32(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE))


@for_kernels(forceinline=True)
def _looked_over(x, bits):
    """The largest key and the largest magnitude of some scores; vectors of them at a time."""
    top, largest = _BELOW_ALL, np.int32(0)
    for i in range(x.size):
        key, magnitude = _key(x[i]), np.int32(bits[i] & _MAGNITUDE)
        top = key if key > top else top
        largest = magnitude if magnitude > largest else largest
    return top, largest


def best_first(source, target, n, k):
    """Places of the `k` best of `n` > k float32, the best first, of equal ones the first first.

    They go to the first words of `target`, which has 2 k + 1; the last one says whether a score is
    NaN. A score that is among the best so far takes up to `k` steps: for few of many.
    """
    x, bits, words = f32_array(source, n), i32_array(source, n), i64_array(target, 2 * k + 1)
    places, keys = words[:k], words[k:]
    found, least, magnitude = 0, _BELOW_ALL, np.int32(0)
    for start in range(0, n, _GROUP):
        end = min(start + _GROUP, n)
        top, largest = _looked_over(x[start:end], bits[start:end])
        magnitude = max(magnitude, largest)
        if top <= least:
            continue
        for i in range(start, end):
            key = _key(x[i])
            if key <= least:
                continue
            at = min(found, k - 1)  # where all places are taken the last one is lost
            while at > 0 and keys[at - 1] < key:
                places[at], keys[at] = places[at - 1], keys[at - 1]
                at -= 1
            places[at], keys[at] = i, key
            found = min(found + 1, k)
            if found == k:
                least = np.int32(keys[k - 1])
    words[2 * k] = 1 if magnitude > _INFINITY else 0


BEST_FIRST = Kernel(best_first, fastmath=())
SOFT_MAX = Kernel(soft_max, fastmath=())
