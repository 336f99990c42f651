"""Probabilities in float64 with the same bits on every machine, for what is drawn from them.

The bits of a library's exponential depend on the processor, and the last one can decide which token
is drawn. Here every step is one rounded addition, multiplication or division, in an order that the
source fixes, and no option lets a compiler fuse or rearrange them.
"""

from typing import Final

import numpy as np

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import f64_array, i64_array

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


SOFT_MAX = Kernel(soft_max, fastmath=())
