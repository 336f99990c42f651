"""Shuffling from a seed alone: the same on every machine, and in no memory.

Everything is integer arithmetic on 64 bits, so nothing depends on a library's version. An order of
a billion samples is a formula, not a list: position to sample, for the asking.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

_ROUNDS = 3  # each mixes both halves
_LEAST_BITS = 6  # fewer mix badly
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
_ALL = (1 << 64) - 1
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(values: ArrayLike) -> Words:
    """Well mixed 64 bits for each integer; different ones for different integers.

    Source: Steele, Lea & Flood 2014 (SplitMix64), constants of Stafford's mix 13.

    >>> int(mixed(0)) == 0, hex(mixed(1))
    (True, '0x5692161d100b05e5')
    """
    x = np.atleast_1d(np.asarray(values)).astype(np.uint64)  # NumPy warns of overflow in scalars
    return _mix(x).reshape(np.shape(values))


def _mix(x: Words) -> Words:
    x = (x ^ (x >> _30)) * _FIRST
    x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)


def key_of(*numbers: int) -> int:
    """One 64-bit key from several integers of any size.

    >>> key_of(1337, 0) != key_of(1337, 1) != key_of(1, 1337)
    True
    """
    key = len(numbers)
    for number in numbers:
        while True:
            key = int(mixed(np.uint64((key + _GOLDEN + (number & _ALL)) & _ALL)))
            number >>= 64
            if number in (0, -1):
                break
    return key


@dataclass(frozen=True)
class Permutation:
    """An order of 0 … n - 1, computed where it is asked for.

    A Feistel network permutes the numbers of as many bits; what falls outside goes through it
    again until it falls inside.

    Args:
        n: at least 1.
        key: 64 bits; another key is another order.

    >>> Permutation(10, key_of(1337))(np.arange(10)).tolist()
    [7, 3, 9, 6, 0, 4, 5, 1, 2, 8]
    """

    n: int
    key: int

    def __call__(self, positions: ArrayLike) -> NDArray[np.int64]:
        """What stands at these positions, each from 0 to n - 1."""
        x = self._network(np.atleast_1d(np.asarray(positions)).astype(np.uint64))
        while (outside := x >= self.n).any():
            x[outside] = self._network(x[outside])
        return x.astype(np.int64).reshape(np.shape(positions))

    def _network(self, x: Words) -> Words:
        bits = max(_LEAST_BITS, (self.n - 1).bit_length())
        low = np.uint64(bits // 2)
        low_mask, high_mask = (
            np.uint64((1 << bits // 2) - 1),
            np.uint64((1 << bits - bits // 2) - 1),
        )
        high, rest = x >> low, x & low_mask
        for k in range(_ROUNDS):
            first, second = (np.uint64((self.key + (2 * k + j) * _GOLDEN) & _ALL) for j in (1, 2))
            high ^= _mix(rest ^ first) & high_mask
            rest ^= _mix(high ^ second) & low_mask
        return (high << low) | rest
