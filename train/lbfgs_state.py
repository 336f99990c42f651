"""What an L-BFGS search remembers: steps and changes of the gradient, which make its direction."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import SettingError, ShapeError
from yupana.train.lbfgs_settings import LbfgsSettings

Vector = NDArray[Any]  # (N,) float32 or float64

_BLOCK = 8192  # BLAS wakes its own threads for longer dot products


@dataclass
class LbfgsState:
    """What a search remembers between iterations; pass it back in to continue, or save it."""

    s: Vector  # (m, N) steps, slots used in turn
    y: Vector  # (m, N) changes of the gradient along them
    ys: NDArray[np.float64]  # (m,) y·s of each pair
    scale: float  # y·s / y·y of the newest pair: the size of the inverse Hessian
    n_pairs: int  # slots in use
    end: int  # slot the next pair goes to
    n_iterations: int  # over all calls
    past_losses: NDArray[np.float64]  # (past,) ring, by n_iterations
    best_loss: float
    n_no_improvement: int

    @classmethod
    def new(cls, n: int, settings: LbfgsSettings, dtype: Any = np.float32) -> "LbfgsState":
        """Empty memory for `n` parameters."""
        m = settings.m
        s, y = np.empty((m, n), dtype), np.empty((m, n), dtype)
        losses = np.full(settings.past, np.nan)
        return cls(s, y, np.zeros(m), 1.0, 0, 0, 0, losses, math.inf, 0)

    def check(self, x0: Vector, settings: LbfgsSettings) -> None:
        """Refuse to go on with another problem.

        Raises:
            ShapeError, SettingError: the state does not fit the start or the settings.
        """
        if self.s.shape != (settings.m, x0.size) or self.s.dtype != x0.dtype:
            raise ShapeError(
                f"lbfgs: the state is of another problem: got {self.s.shape} {self.s.dtype}, want "
                f"(m, N) = ({settings.m}, {x0.size}) {x0.dtype}. Leave `state` out to start afresh."
            )
        if self.past_losses.shape != (settings.past,):
            raise SettingError(
                f"lbfgs: `past` differs from the state's: got {settings.past}, want "
                f"{self.past_losses.size}. Leave `state` out to start afresh."
            )

    def remember(self, x: Vector, x_before: Vector, g: Vector, g_before: Vector) -> None:
        """Store a step with the change of the gradient along it.

        Args:
            x, x_before: (N,) parameters. g, g_before: (N,) gradients there.
        """
        m, slot = len(self.s), self.end
        s, y = self.s[slot], self.y[slot]
        # Written straight into the slot: the oldest pair is lost even if this one is no use.
        np.subtract(x, x_before, out=s)
        np.subtract(g, g_before, out=y)
        ys, yy = dot(y, s), dot(y, y)
        if not (ys > 0 and math.isfinite(ys / yy)):
            self.n_pairs = min(self.n_pairs, m - 1)
            return
        self.ys[slot], self.scale = ys, ys / yy
        self.n_pairs = min(self.n_pairs + 1, m)
        self.end = (slot + 1) % m

    def direction(self, g: Vector, out: Vector, work: Vector) -> float:
        """Set `out` to minus the inverse Hessian times the gradient `g`; returns the first step.

        Source: Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4 (two loops).
        """
        np.negative(g, out=out)
        if not self.n_pairs:
            return 1.0 / math.sqrt(dot(out, out))
        newest_first = [(self.end - 1 - i) % len(self.s) for i in range(self.n_pairs)]
        alphas = []
        for j in newest_first:
            alphas.append(dot(self.s[j], out) / float(self.ys[j]))
            np.multiply(self.y[j], alphas[-1], out=work)
            out -= work
        out *= self.scale
        for j, alpha in zip(reversed(newest_first), reversed(alphas), strict=True):
            beta = dot(self.y[j], out) / float(self.ys[j])
            np.multiply(self.s[j], alpha - beta, out=work)
            out += work
        return 1.0


def dot(a: Vector, b: Vector) -> float:
    """a·b, summed in blocks: keeps BLAS on this thread, and float32 sums accurate.

    >>> dot(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    11.0
    """
    if a.size <= _BLOCK:
        return float(a.dot(b))
    total = 0.0
    for i in range(0, a.size, _BLOCK):
        total += float(a[i : i + _BLOCK].dot(b[i : i + _BLOCK]))
    return total
