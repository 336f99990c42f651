"""Sums over rows in float64, for row functions whose results cancel.

The gradient of a normalised row is what is left of it after its mean and its own direction are
taken away: for rows of a few elements, little more than the rounding of float32.
"""

from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.rowwise import SUMS


@for_kernels(**SUMS)
def squares_about(x, middle):
    """Sum of (x[j] - middle)²; `middle` is a float64."""
    total = 0.0
    for j in range(x.size):
        d = x[j] - middle
        total += d * d
    return total


@for_kernels(**SUMS)
def products_about(x, middle, g):
    """Sum of (x[j] - middle) · g[j]."""
    total = 0.0
    for j in range(x.size):
        total += (x[j] - middle) * g[j]
    return total
