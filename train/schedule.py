"""Learning-rate schedules: the factor by which each update's learning rate is multiplied.

They are those of ggml's training programs, plus linear and constant, with two corrections:

- The warm-up is subtracted from the step before the decay, so that the decay starts at 1. ggml
  does so only with restarts; without them the rate drops from 1 when the warm-up ends.
- The warm-up starts above 0. ggml gives the first update the factor 0 and so wastes it.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from yupana.graphlib.errors import SettingError, require

Kind = Literal["constant", "linear", "cosine", "cosine_restart"]


def cosine_decay(step: int, steps: int, minimum: float = 0.0) -> float:
    """Half a cosine from 1 at step 0 to `minimum` at step `steps` and after.

    >>> [round(cosine_decay(step, 10, 0.1), 3) for step in (0, 5, 10, 99)]
    [1.0, 0.55, 0.1, 0.1]
    """
    part = min(step, steps) / steps
    return (1 - minimum) * 0.5 * (1 + math.cos(math.pi * part)) + minimum


def linear_decay(step: int, steps: int, minimum: float = 0.0) -> float:
    """A line from 1 at step 0 to `minimum` at step `steps` and after.

    >>> [round(linear_decay(step, 10, 0.1), 3) for step in (0, 5, 10, 99)]
    [1.0, 0.55, 0.1, 0.1]
    """
    return 1 - (1 - minimum) * min(step, steps) / steps


def cosine_decay_restart(
    step: int, steps: int, minimum: float = 0.0, multiplier: float = 1.1
) -> float:
    """Cosine decays one after another, each `multiplier` (at least 1) times as long.

    A decay ends on `minimum`; the next one begins on its own step 1, as in ggml.

    >>> [round(cosine_decay_restart(step, 4, 0.0, 2.0), 3) for step in (0, 2, 4, 5, 8, 12)]
    [1.0, 0.5, 0.0, 0.962, 0.5, 0.0]
    """
    while step > steps:
        longer = int(multiplier * steps)
        if longer <= steps:  # all further decays have this length
            return cosine_decay((step - 1) % steps + 1, steps, minimum)
        step, steps = step - steps, longer
    return cosine_decay(step, steps, minimum)


@dataclass(frozen=True)
class Schedule:
    """A schedule, with the settings of ggml's training programs and their defaults.

    Raises:
        SettingError: a setting outside its range.

    >>> schedule = Schedule("cosine", warmup=4, steps=10, minimum=0.1)
    >>> [round(schedule.factor(step), 3) for step in (0, 3, 4, 9, 14, 1000)]
    [0.2, 0.8, 1.0, 0.55, 0.1, 0.1]
    """

    # Shape of the decay after the warm-up.
    kind: Kind = "cosine"
    # Updates over which the factor rises to 1.
    warmup: int = 100
    # Updates over which it then decays to `minimum`.
    steps: int = 1000
    # Factor at the end of the decay.
    minimum: float = 0.1
    # cosine_restart: each decay lasts this many times as long as the one before.
    restart: float = 1.1
    # Factor below which nothing goes, warm-up included: ggml's adam-min-alpha / adam-alpha.
    floor: float = 0.0

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        self._require("kind", self.kind in kinds, f"one of {', '.join(kinds)}")
        self._require("warmup", self.warmup >= 0, "at least 0")
        self._require("steps", self.steps >= 1, "at least 1")
        self._require("minimum", 0 <= self.minimum <= 1, "0 <= minimum <= 1")
        # Shorter and shorter decays would come to a length of 0, where ggml loops for ever.
        self._require("restart", 1 <= self.restart < math.inf, "at least 1")
        self._require("floor", 0 <= self.floor <= 1, "0 <= floor <= 1")

    def _require(self, name: str, is_right: bool, rule: str) -> None:
        require("schedule", name, getattr(self, name), is_right, rule)

    def factor(self, step: int) -> float:
        """Factor of the learning rate for update number `step`, counted from 0.

        Raises:
            SettingError: `step` is negative.
        """
        if step < 0:
            raise SettingError(f"schedule: step is negative: got {step}, want at least 0.")
        if step < self.warmup:
            value = (step + 1) / (self.warmup + 1)
        else:
            value = self._decay(step - self.warmup)
        return self.floor + (1 - self.floor) * value

    def _decay(self, step: int) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "linear":
            return linear_decay(step, self.steps, self.minimum)
        if self.kind == "cosine":
            return cosine_decay(step, self.steps, self.minimum)
        return cosine_decay_restart(step, self.steps, self.minimum, self.restart)
