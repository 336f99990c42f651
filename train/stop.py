"""When a run ends before its last step: ggml's convergence tests, time, and validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from yupana.graphlib.errors import require


@dataclass(frozen=True)
class StopRules:
    """Tests that may end a run; 0 turns each off.

    Raises:
        SettingError: a setting is negative.
    """

    # Compare the loss with the one so many steps ago.
    past: int = 0
    # Stop where it changed by less than this share over those steps.
    delta: float = 1e-5
    # Stop after so many steps without a new lowest loss.
    max_no_improvement: int = 0
    # Stop where the loss changes by less than this share from one step to the next.
    epsf: float = 0.0
    # Stop after so many looks at the validation loss without a new lowest.
    patience: int = 0
    # Stop after so many seconds.
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("past", "delta", "max_no_improvement", "epsf", "patience", "seconds"):
            value = getattr(self, name)
            require("stop", name, value, 0 <= value < math.inf, "at least 0")


@dataclass
class StopState:
    """What the tests remember from step to step; a resumed run goes on with it."""

    best: float = math.inf
    previous: float = math.nan
    n_no_improvement: int = 0
    past: list[float] = field(default_factory=list)  # the last losses, `past` of them at most
    n_no_better_validation: int = 0


def after_step(rules: StopRules, state: StopState, loss: float, seconds: float) -> str | None:
    """Why to stop after a step with this loss, if there is a reason; the state is updated.

    Shares are of the present loss without its sign, and nothing is divided by it, so that a loss
    of zero or below is no trap as it is in ggml.

    Args:
        seconds: spent by the run so far.

    >>> rules, state = StopRules(max_no_improvement=2), StopState()
    >>> [after_step(rules, state, loss, 0.0) for loss in (3.0, 2.0, 2.5, 2.25)][2:]
    [None, 'no lower loss in 2 steps']
    """
    previous, state.previous = state.previous, loss
    before = state.past[0] if rules.past and len(state.past) >= rules.past else math.nan
    state.past = [*state.past, loss][-rules.past :] if rules.past else []
    state.n_no_improvement = 0 if loss < state.best else state.n_no_improvement + 1
    state.best = min(state.best, loss)
    if abs(loss - previous) < rules.epsf * abs(loss):
        return f"the loss changed by less than {rules.epsf:g} of itself"
    if abs(loss - before) < rules.delta * abs(loss):
        return f"the loss changed by less than {rules.delta:g} of itself in {rules.past} steps"
    if 0 < rules.max_no_improvement <= state.n_no_improvement:
        return f"no lower loss in {state.n_no_improvement} steps"
    if 0 < rules.seconds <= seconds:
        return f"{rules.seconds:g} seconds are over"
    return None


def after_validation(rules: StopRules, state: StopState, is_best: bool) -> str | None:
    """Why to stop after a look at the validation loss, if there is a reason."""
    state.n_no_better_validation = 0 if is_best else state.n_no_better_validation + 1
    if 0 < rules.patience <= state.n_no_better_validation:
        return f"no lower validation loss in {rules.patience} looks"
    return None
