"""What the optimisers of the graph are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from yupana.graphlib.errors import SettingError, require


@dataclass(frozen=True)
class ParamGroup:
    """Parameters, chosen by name, that are treated in their own way.

    Raises:
        SettingError: a number is negative or not finite.
    """

    # Their names, with * for any letters: "blk.*.attn_q*".
    names: str
    # Multiplies the learning rate; 0 freezes them.
    rate: float = 1.0
    # Weight decay, whatever their number of axes; None: as the others.
    decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "decay"):
            value = getattr(self, name)
            is_right = value is None or 0 <= value < math.inf
            require(f"group {self.names!r}", name, value, is_right, "at least 0")

    @classmethod
    def parse(cls, text: str) -> ParamGroup:
        """A group as the command line has it.

        Raises:
            SettingError: text of another form.

        >>> ParamGroup.parse("*norm*=0.5,0")
        ParamGroup(names='*norm*', rate=0.5, decay=0.0)
        """
        names, _, numbers = text.rpartition("=")
        try:
            rate, *decay = map(float, numbers.split(","))
            (value,) = decay or (None,)
        except ValueError:
            names = ""
        if not names:
            raise SettingError(
                f"param_group: got {text!r}, want NAMES=RATE or NAMES=RATE,DECAY, as in "
                "'blk.*.attn_q*=0.1'."
            )
        return cls(names, rate, value)


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """What all optimisers in the graph are told, with the defaults of ggml's training programs.

    Raises:
        SettingError: a setting outside its range.
    """

    kind: ClassVar[str] = ""  # in messages, and in checkpoints as ggml has it

    # Learning rate, before the schedule's factor.
    alpha: float = 1e-3
    # Weight decay, in units of the learning rate.
    decay: float = 0.1
    # Only tensors with at least so many axes decay: norms and biases do not.
    decay_min_axes: int = 2
    # Gradients are scaled down where their norm, over all tensors, exceeds this; 0: never.
    clip: float = 1.0
    # Parameters treated in their own way; the first group that fits counts.
    groups: tuple[ParamGroup, ...] = ()

    def __post_init__(self) -> None:
        for name in ("alpha", "decay", "decay_min_axes", "clip"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "at least 0")

    def _require(self, name: str, is_right: bool, rule: str) -> None:
        require(self.kind, name, getattr(self, name), is_right, rule)

    def of(self, name: str, n_axes: int) -> tuple[float, float]:
        """Factor of the learning rate, and weight decay, of a parameter.

        >>> settings = SgdSettings(decay=0.1, groups=(ParamGroup("head*", 0.5),))
        >>> settings.of("head.weight", 2), settings.of("norm", 1)
        ((0.5, 0.1), (1.0, 0.0))
        """
        usual = self.decay if n_axes >= self.decay_min_axes else 0.0
        for group in self.groups:
            if fnmatchcase(name, group.names):
                return group.rate, usual if group.decay is None else group.decay
        return 1.0, usual

    def check_groups(self, names: Sequence[str]) -> None:
        """Check that every group has parameters.

        Args:
            names: of all parameters.
        Raises:
            SettingError: none of them is in a group.
        """
        for group in self.groups:
            if not any(fnmatchcase(name, group.names) for name in names):
                raise SettingError(
                    f"param_group: got {group.names!r}, want a pattern that matches one of the "
                    f"{len(names)} trained parameters: {', '.join(names[:3])}, …"
                )


@dataclass(frozen=True, kw_only=True)
class AdamWSettings(OptimiserSettings):
    """Settings of `AdamW`.

    Raises:
        SettingError: a setting outside its range.
    """

    kind: ClassVar[str] = "adam"

    # How much of the mean gradient is kept from step to step.
    beta1: float = 0.9
    # How much of the mean squared gradient is kept from step to step.
    beta2: float = 0.999
    # Added to the root of the mean squared gradient.
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("eps", 0 <= self.eps < math.inf, "at least 0")
        for name in ("beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "0 <= value < 1")


@dataclass(frozen=True, kw_only=True)
class SgdSettings(OptimiserSettings):
    """Settings of `Sgd`: plain gradient descent has no others.

    Raises:
        SettingError: a setting outside its range.
    """

    kind: ClassVar[str] = "sgd"
