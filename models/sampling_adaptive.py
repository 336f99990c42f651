"""Adaptive-p, the youngest of llama.cpp's samplers: tokens of about a wanted probability."""

from __future__ import annotations

from typing import Final

import numpy as np

from yupana.models.sampling_math import Floats, soft_max
from yupana.models.sampling_steps import Candidates

# llama.cpp's constants: the width of the bell, the score at its top, and how steeply it falls.
_WIDTH: Final = 0.3
_PEAK: Final = 5.0
_SHARPNESS: Final = 10.0


class AdaptiveP:
    """Gives tokens scores by the distance of their probability from a target that moves.

    The target moves against the mean probability of the tokens drawn so far, so that this mean
    comes to be the one wanted. The weight of each draw in the mean falls by `decay` with every
    further one.

    Args:
        target: probability wanted.
        decay: in [0, 1); 0.9 looks back about ten tokens.
    """

    def __init__(self, target: float, decay: float) -> None:
        self._target = target
        self._decay = decay
        self._chances: Floats = np.zeros(0)
        self.reset()

    def reset(self) -> None:
        """Forget the draws; the mean starts at the target."""
        self._weight = 1 / (1 - self._decay)
        self._sum = self._target * self._weight

    def bend(self, c: Candidates) -> Candidates:
        """The same tokens with their scores by distance; those with -inf keep it."""
        self._chances = soft_max(c.scores)
        aim = min(max(2 * self._target - self._sum / self._weight, 0.0), 1.0)
        distance = np.abs(self._chances - aim) / _WIDTH
        scores = _PEAK - _SHARPNESS * distance * distance / (1 + distance)
        return c.with_scores(np.where(c.scores > -np.inf, scores, -np.inf))

    def drawn(self, place: int) -> None:
        """Count the draw of the candidate at `place` of those last bent."""
        self._sum = float(self._chances[place]) + self._decay * self._sum
        self._weight = 1 + self._decay * self._weight
