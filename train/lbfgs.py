"""L-BFGS with backtracking line search: ggml's second optimiser, driving evaluations from Python.

The semantics are those of ggml_opt_lbfgs (itself after liblbfgs), with these deliberate changes:

- `n_iter` line searches are made at most, as in ggml's first version; later ones made one more.
- A step to a loss or gradient that is not finite counts as too long and is halved; ggml takes it.
- When a line search fails, `x` is the last good point; ggml leaves the failed trial in the model.
- A resumed search uses the curvature it remembers; ggml starts it along the plain gradient.
- A pair of no or negative curvature is not remembered (only Armijo's rule lets one arise).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import DtypeError, SettingError, ShapeError, require

Vector = NDArray[Any]  # (N,) float32 or float64
Evaluate = Callable[[Vector], tuple[float, Vector]]
OnIteration = Callable[[int, float], bool | None]

_SHRINK, _GROW = 0.5, 2.1  # what a trial step is multiplied by
_BLOCK = 8192  # BLAS wakes its own threads for longer dot products


class LbfgsStatus(Enum):
    """Why a search ended; the value says it in words."""

    CONVERGED = "converged: the gradient is small compared with the parameters"
    LOSS_SETTLED = "converged: the loss hardly changed over the last iterations"
    NO_IMPROVEMENT = "stopped: no better loss for the number of iterations allowed"
    ITERATION_LIMIT = "stopped: the number of iterations allowed was done"
    CANCELLED = "stopped by the caller"
    NON_FINITE = "failed: loss or gradient is not finite"
    NOT_DESCENT = "failed: the search direction does not lead downhill"
    MINIMUM_STEP = "failed: the step of the line search became smaller than min_step"
    MAXIMUM_STEP = "failed: the step of the line search became larger than max_step"
    LINESEARCH_LIMIT = "failed: the line search used up max_linesearch evaluations"

    @property
    def is_failure(self) -> bool:
        """Whether the last line search found no acceptable point; `x` is then the one before."""
        return self.value.startswith("failed")


@dataclass(frozen=True)
class LbfgsSettings:
    """Settings of `lbfgs`, with ggml's names and defaults.

    Raises:
        SettingError: a value outside its range, or `wolfe` not between `ftol` and 1.

    >>> LbfgsSettings(wolfe=1.5)
    Traceback (most recent call last):
    yupana.graphlib.errors.SettingError: lbfgs: wolfe is out of range: got 1.5, want ftol (0.0001) \
< wolfe < 1.
    """

    # Pairs of steps and gradient changes remembered.
    m: int = 6
    # Iterations (line searches) at most.
    n_iter: int = 100
    # Evaluations per line search at most.
    max_linesearch: int = 20
    # Converged when |gradient| <= eps * max(1, |parameters|).
    eps: float = 1e-5
    # Sufficient decrease: the share of the decrease that the slope promises.
    ftol: float = 1e-4
    # Curvature condition: the slope has to fall to this share; not used by "armijo".
    wolfe: float = 0.9
    # Step lengths below and above which the line search gives up.
    min_step: float = 1e-20
    max_step: float = 1e20
    # Conditions that end a line search.
    linesearch: Literal["armijo", "wolfe", "strong_wolfe"] = "wolfe"
    # Compare the loss with the one so many iterations ago; 0: never.
    past: int = 0
    # Relative change of the loss over `past` iterations that counts as settled.
    delta: float = 1e-5
    # Stop after so many iterations without a new best loss; 0: never.
    max_no_improvement: int = 0

    def __post_init__(self) -> None:
        for name in ("m", "n_iter", "max_linesearch"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("eps", "past", "delta", "max_no_improvement"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        kinds = ("armijo", "wolfe", "strong_wolfe")
        self._require("linesearch", self.linesearch in kinds, f"one of {', '.join(kinds)}")
        self._require("ftol", 0 < self.ftol < 1, "0 < ftol < 1")
        if self.linesearch != "armijo":
            rule = f"ftol ({self.ftol}) < wolfe < 1"
            self._require("wolfe", self.ftol < self.wolfe < 1, rule)
        rule = f"0 < min_step < max_step ({self.max_step})"
        self._require("min_step", 0 < self.min_step < self.max_step, rule)

    def _require(self, name: str, is_right: bool, rule: str) -> None:
        require("lbfgs", name, getattr(self, name), is_right, rule)


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


@dataclass(frozen=True)
class LbfgsResult:
    """Where a search ended and why."""

    x: Vector  # (N,) the parameters: the caller puts them back into the model
    loss: float  # at x
    gradient: Vector  # (N,) at x
    status: LbfgsStatus
    n_iterations: int  # of this call
    n_evaluations: int  # of this call
    state: LbfgsState


def lbfgs(
    evaluate: Evaluate,
    x0: Vector,
    settings: LbfgsSettings | None = None,
    state: LbfgsState | None = None,
    on_iteration: OnIteration | None = None,
) -> LbfgsResult:
    """Minimise a function of many variables from its values and gradients.

    Args:
        evaluate: returns loss and gradient (N,) at the (N,) vector it is given. It must not keep
            or change that vector; the gradient it returns is copied and may be its own buffer.
        x0: (N,) float32 or float64, the start; not changed. Vectors are kept in this dtype.
        settings: see `LbfgsSettings`.
        state: the state of an earlier result, to continue it from its `x`, bit for bit as if it
            had not stopped; it is updated in place.
        on_iteration: called with (iterations of this call, loss) after each; True stops.

    Raises:
        ShapeError, DtypeError: `x0`, `state` or a gradient that does not fit.

    >>> bowl = lambda x: (float(x @ x), 2 * x)
    >>> result = lbfgs(bowl, np.array([3.0, -4.0]))
    >>> result.status.name, abs(result.loss) < 1e-10
    ('CONVERGED', True)
    """
    settings = settings or LbfgsSettings()
    x0 = np.asarray(x0)
    if x0.ndim != 1 or x0.size == 0:
        raise ShapeError(f"lbfgs: x0 has a wrong shape: got {x0.shape}, want (N,) with N >= 1.")
    if x0.dtype not in (np.float32, np.float64):
        raise DtypeError(f"lbfgs: x0 has a wrong dtype: got {x0.dtype}, want float32 or float64.")
    if state is None:
        state = LbfgsState.new(x0.size, settings, x0.dtype)
    else:
        _check_state(state, x0, settings)
    search = _Search(evaluate, x0, settings, state)
    # What overflows is found by looking at the numbers, so NumPy need not warn of it.
    with np.errstate(over="ignore", invalid="ignore"):
        status, n_iterations = _iterate(search, on_iteration)
    return LbfgsResult(
        search.x, search.loss, search.g, status, n_iterations, search.n_evaluations, state
    )


def _iterate(search: "_Search", on_iteration: OnIteration | None) -> tuple[LbfgsStatus, int]:
    """Iterate until there is a reason to stop; returns it and the number of iterations."""
    status = search.start()
    n_iterations = 0
    while status is None:
        status = search.line_search()
        if status is not None:
            break
        n_iterations += 1
        if on_iteration is not None and on_iteration(n_iterations, search.loss):
            return LbfgsStatus.CANCELLED, n_iterations
        status = search.verdict()
        if status is None and n_iterations == search.settings.n_iter:
            status = LbfgsStatus.ITERATION_LIMIT
    return status, n_iterations


class _Search:
    """The vectors of a running search and the steps made on them, all in place."""

    def __init__(
        self, evaluate: Evaluate, x0: Vector, settings: LbfgsSettings, state: LbfgsState
    ) -> None:
        self.evaluate, self.settings, self.state = evaluate, settings, state
        self.x, self.x_before = x0.copy(), np.empty_like(x0)
        self.g, self.g_before = np.empty_like(x0), np.empty_like(x0)
        self.d, self.work = np.empty_like(x0), np.empty_like(x0)
        self.loss = math.nan
        self.n_evaluations = 0

    def start(self) -> LbfgsStatus | None:
        """Evaluate the first point; a status if there is nothing to do."""
        self._evaluate()
        if not (math.isfinite(self.loss) and math.isfinite(_dot(self.g, self.g))):
            return LbfgsStatus.NON_FINITE
        state = self.state
        if state.n_iterations == 0:
            state.best_loss = self.loss
            if self.settings.past:
                state.past_losses[0] = self.loss
        return LbfgsStatus.CONVERGED if self._is_flat() else None

    def line_search(self) -> LbfgsStatus | None:
        """Go to an acceptable point along the search direction, or back, with the reason."""
        step = self._direction()
        slope = _dot(self.g, self.d)
        if not (slope <= 0 and math.isfinite(slope) and step > 0):
            return LbfgsStatus.NOT_DESCENT
        loss_before = self.loss
        self.x, self.x_before = self.x_before, self.x
        self.g, self.g_before = self.g_before, self.g
        failure = self._try_steps(step, loss_before, slope)
        if failure is None:
            self._remember()
            self.state.n_iterations += 1
            return None
        self.x, self.g, self.loss = self.x_before, self.g_before, loss_before
        return failure

    def _try_steps(self, step: float, loss_before: float, slope: float) -> LbfgsStatus | None:
        settings = self.settings
        for _ in range(settings.max_linesearch):
            np.multiply(self.d, step, out=self.x)
            self.x += self.x_before
            self._evaluate()
            factor, is_finite = self._judge(step, loss_before, slope)
            if factor == 1.0:
                return None
            if step < settings.min_step:
                return LbfgsStatus.MINIMUM_STEP
            if step > settings.max_step:
                return LbfgsStatus.MAXIMUM_STEP
            step *= factor
        return LbfgsStatus.LINESEARCH_LIMIT if is_finite else LbfgsStatus.NON_FINITE

    def _judge(self, step: float, loss_before: float, slope: float) -> tuple[float, bool]:
        """What to multiply the step by (1: it is accepted), and whether all was finite."""
        settings = self.settings
        if not math.isfinite(self.loss):
            return _SHRINK, False
        if self.loss > loss_before + step * settings.ftol * slope:
            return _SHRINK, True
        slope_now = _dot(self.g, self.d)
        if not math.isfinite(slope_now):
            return _SHRINK, False
        if settings.linesearch == "armijo":
            return 1.0, True
        if slope_now < settings.wolfe * slope:
            return _GROW, True
        if settings.linesearch == "strong_wolfe" and slope_now > -settings.wolfe * slope:
            return _SHRINK, True
        return 1.0, True

    def verdict(self) -> LbfgsStatus | None:
        """Why to stop at the point just reached, if there is a reason."""
        settings, state = self.settings, self.state
        if self._is_flat():
            return LbfgsStatus.CONVERGED
        if settings.past:
            slot = state.n_iterations % settings.past
            before = float(state.past_losses[slot])
            state.past_losses[slot] = self.loss
            is_known = state.n_iterations >= settings.past
            # Not divided by the loss as in ggml, so that a loss of zero or below is no trap.
            if is_known and abs(before - self.loss) <= settings.delta * abs(self.loss):
                return LbfgsStatus.LOSS_SETTLED
        if self.loss < state.best_loss:
            state.best_loss, state.n_no_improvement = self.loss, 0
        else:
            state.n_no_improvement += 1
            if 0 < settings.max_no_improvement <= state.n_no_improvement:
                return LbfgsStatus.NO_IMPROVEMENT
        return None

    def _evaluate(self) -> None:
        loss, gradient = self.evaluate(self.x)
        if np.shape(gradient) != self.g.shape:
            raise ShapeError(
                f"lbfgs: the gradient has a wrong shape: got {np.shape(gradient)}, "
                f"want {self.g.shape}, the shape of x0."
            )
        np.copyto(self.g, gradient, casting="same_kind")
        self.loss = float(loss)
        self.n_evaluations += 1

    def _is_flat(self) -> bool:
        slope, size = math.sqrt(_dot(self.g, self.g)), math.sqrt(_dot(self.x, self.x))
        return slope <= self.settings.eps * max(1.0, size) < math.inf

    def _remember(self) -> None:
        """Store the step just made with the change of the gradient along it."""
        state, slot = self.state, self.state.end
        s, y = state.s[slot], state.y[slot]
        # Written straight into the slot: the oldest pair is lost even if this one is no use.
        np.subtract(self.x, self.x_before, out=s)
        np.subtract(self.g, self.g_before, out=y)
        ys, yy = _dot(y, s), _dot(y, y)
        if not (ys > 0 and math.isfinite(ys / yy)):
            state.n_pairs = min(state.n_pairs, self.settings.m - 1)
            return
        state.ys[slot], state.scale = ys, ys / yy
        state.n_pairs = min(state.n_pairs + 1, self.settings.m)
        state.end = (slot + 1) % self.settings.m

    def _direction(self) -> float:
        """Set `d` to minus the inverse Hessian times the gradient; returns the first step.

        Source: Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4 (two loops).
        """
        state, d, work = self.state, self.d, self.work
        np.negative(self.g, out=d)
        if not state.n_pairs:
            return 1.0 / math.sqrt(_dot(d, d))
        newest_first = [(state.end - 1 - i) % self.settings.m for i in range(state.n_pairs)]
        alphas = []
        for j in newest_first:
            alphas.append(_dot(state.s[j], d) / float(state.ys[j]))
            np.multiply(state.y[j], alphas[-1], out=work)
            d -= work
        d *= state.scale
        for j, alpha in zip(reversed(newest_first), reversed(alphas), strict=True):
            beta = _dot(state.y[j], d) / float(state.ys[j])
            np.multiply(state.s[j], alpha - beta, out=work)
            d += work
        return 1.0


def _dot(a: Vector, b: Vector) -> float:
    """a·b, summed in blocks: keeps BLAS on this thread, and float32 sums accurate."""
    if a.size <= _BLOCK:
        return float(a.dot(b))
    total = 0.0
    for i in range(0, a.size, _BLOCK):
        total += float(a[i : i + _BLOCK].dot(b[i : i + _BLOCK]))
    return total


def _check_state(state: LbfgsState, x0: Vector, settings: LbfgsSettings) -> None:
    if state.s.shape != (settings.m, x0.size) or state.s.dtype != x0.dtype:
        raise ShapeError(
            f"lbfgs: the state is of another problem: got {state.s.shape} {state.s.dtype}, want "
            f"(m, N) = ({settings.m}, {x0.size}) {x0.dtype}. Leave `state` out to start afresh."
        )
    if state.past_losses.shape != (settings.past,):
        raise SettingError(
            f"lbfgs: `past` differs from the state's: got {settings.past}, want "
            f"{state.past_losses.size}. Leave `state` out to start afresh."
        )
