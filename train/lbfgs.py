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

import numpy as np

from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.train.lbfgs_settings import LbfgsSettings
from yupana.train.lbfgs_state import LbfgsState, Vector, dot

__all__ = ["LbfgsResult", "LbfgsSettings", "LbfgsState", "LbfgsStatus", "Vector", "lbfgs"]

Evaluate = Callable[[Vector], tuple[float, Vector]]
OnIteration = Callable[[int, float], bool | None]

_SHRINK, _GROW = 0.5, 2.1  # what a trial step is multiplied by


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
        state.check(x0, settings)
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
        if not (math.isfinite(self.loss) and math.isfinite(dot(self.g, self.g))):
            return LbfgsStatus.NON_FINITE
        state = self.state
        if state.n_iterations == 0:
            state.best_loss = self.loss
            if self.settings.past:
                state.past_losses[0] = self.loss
        return LbfgsStatus.CONVERGED if self._is_flat() else None

    def line_search(self) -> LbfgsStatus | None:
        """Go to an acceptable point along the search direction, or back, with the reason."""
        step = self.state.direction(self.g, self.d, self.work)
        slope = dot(self.g, self.d)
        if not (slope <= 0 and math.isfinite(slope) and step > 0):
            return LbfgsStatus.NOT_DESCENT
        loss_before = self.loss
        self.x, self.x_before = self.x_before, self.x
        self.g, self.g_before = self.g_before, self.g
        failure = self._try_steps(step, loss_before, slope)
        if failure is None:
            self.state.remember(self.x, self.x_before, self.g, self.g_before)
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
        slope_now = dot(self.g, self.d)
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
        slope, size = math.sqrt(dot(self.g, self.g)), math.sqrt(dot(self.x, self.x))
        return slope <= self.settings.eps * max(1.0, size) < math.inf
