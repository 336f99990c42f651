"""What an L-BFGS search is told."""

from dataclasses import dataclass
from typing import Literal

from yupana.graphlib.errors import require


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
