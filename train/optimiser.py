"""Optimisers in the graph: clipping, bias correction and update run in the compiled step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from yupana.graphlib import ops
from yupana.graphlib.context import Context
from yupana.graphlib.tensor import Tensor
from yupana.train.optimiser_settings import (
    AdamWSettings,
    OptimiserSettings,
    ParamGroup,
    SgdSettings,
)

__all__ = [
    "AdamW",
    "AdamWSettings",
    "Optimiser",
    "OptimiserSettings",
    "ParamGroup",
    "Sgd",
    "SgdSettings",
    "make_optimiser",
]


class Optimiser(ABC):
    """The optimiser's nodes for given gradients, and the numbers they read in each step.

    Where the loss or a gradient is not finite, the step changes nothing: neither a parameter nor
    the state. `scale` is then not finite.

    Args:
        loss: one element.
        grads: gradient by parameter, as `gradients` returns them.
        gate: one element that is 0 where the step shall be taken, NaN where not; None: always.

    Raises:
        SettingError: a group without a parameter.

    Attributes:
        updates: the nodes to compute; make them outputs of the step's graph.
        norm: one element, the norm of all gradients together.
        scale: one element, what gradients are multiplied by to clip them.
        params: those that are trained.
        state: what it remembers from step to step, by name.
    """

    n_numbers: ClassVar[int]

    def __init__(
        self,
        loss: Tensor,
        grads: Mapping[Tensor, Tensor],
        settings: OptimiserSettings,
        gate: Tensor | None = None,
    ) -> None:
        self.context = Context(no_alloc=loss.context.no_alloc)
        self.norm = ops.sqrt(_sum_of_squares(grads))
        self.scale = _clip_scale(self.norm, settings.clip) + (self.norm + loss) * 0.0
        if gate is not None:
            self.scale = self.scale + gate
        self.params = tuple(grads)
        self.state: dict[str, Tensor] = {}
        self._numbers: dict[tuple[float, float], Tensor] = {}
        self.updates: list[Tensor] = []
        names = [param.name or f"param{k}" for k, param in enumerate(grads)]
        settings.check_groups(names)
        for name, (param, grad) in zip(names, grads.items(), strict=True):
            key = settings.of(name, param.ndim)
            if key not in self._numbers:
                leaf = self.context.input((self.n_numbers,), name=f"numbers.{len(self._numbers)}")
                self._numbers[key] = leaf
            self.updates.append(self._update(name, param, grad, self._numbers[key]))

    def set(self, step: int, factor: float = 1.0) -> None:
        """Make the numbers ready for update number `step`, counted from 0.

        Args:
            factor: of the learning rate, from the schedule.
        """
        for (rate, decay), leaf in self._numbers.items():
            leaf.set(self._values(step, factor * rate, decay))

    def _remember(self, name: str, param: Tensor) -> Tensor:
        """A leaf of zeros like a parameter, part of the state."""
        self.state[name] = self.context.leaf(param.shape, param.dtype, name)
        return self.state[name]

    @abstractmethod
    def _update(self, name: str, param: Tensor, grad: Tensor, numbers: Tensor) -> Tensor:
        """Record the update of one parameter."""

    @abstractmethod
    def _values(self, step: int, factor: float, decay: float) -> list[float]:
        """The numbers that updates read."""


class AdamW(Optimiser):
    """Adam with decoupled weight decay.

    >>> import yupana as yp
    >>> w = yp.Context().param((2,), name="w").set([3.0, 4.0])
    >>> loss = (w * w).sum()
    >>> adamw = AdamW(loss, yp.gradients(loss), AdamWSettings(alpha=0.5, decay=0.0))
    >>> program = yp.Graph([loss, adamw.norm, *adamw.updates]).compile(threads=1)
    >>> adamw.set(step=0)
    >>> program.run()
    >>> w.numpy().round(4), adamw.norm.item()
    (array([2.5, 3.5], dtype=float32), 10.0)
    """

    n_numbers = 7

    def __init__(
        self,
        loss: Tensor,
        grads: Mapping[Tensor, Tensor],
        settings: AdamWSettings,
        gate: Tensor | None = None,
    ) -> None:
        self._settings = settings
        super().__init__(loss, grads, settings, gate)

    def _update(self, name: str, param: Tensor, grad: Tensor, numbers: Tensor) -> Tensor:
        m = self._remember(f"{name}.first_moments", param)
        v = self._remember(f"{name}.second_moments", param)
        return ops.opt_step_adamw(param, grad, m, v, numbers, self.scale)

    def _values(self, step: int, factor: float, decay: float) -> list[float]:
        s = self._settings
        corrections = (1 / (1 - s.beta1 ** (step + 1)), 1 / (1 - s.beta2 ** (step + 1)))
        return [s.alpha * factor, s.beta1, s.beta2, s.eps, decay, *corrections]


class Sgd(Optimiser):
    """Gradient descent without momentum, as ggml's.

    >>> import yupana as yp
    >>> w = yp.Context().param((2,), name="w").set([3.0, 4.0])
    >>> loss = (w * w).sum()
    >>> sgd = Sgd(loss, yp.gradients(loss), SgdSettings(alpha=0.25, decay=0.0, clip=0.0))
    >>> program = yp.Graph([loss, *sgd.updates]).compile(threads=1)
    >>> sgd.set(step=0)
    >>> program.run()
    >>> w.numpy()
    array([1.5, 2. ], dtype=float32)
    """

    n_numbers = 2

    def __init__(
        self,
        loss: Tensor,
        grads: Mapping[Tensor, Tensor],
        settings: SgdSettings,
        gate: Tensor | None = None,
    ) -> None:
        self._alpha = settings.alpha
        super().__init__(loss, grads, settings, gate)

    def _update(self, name: str, param: Tensor, grad: Tensor, numbers: Tensor) -> Tensor:
        return ops.opt_step_sgd(param, grad, numbers, self.scale)

    def _values(self, step: int, factor: float, decay: float) -> list[float]:
        return [self._alpha * factor, decay]


def make_optimiser(
    loss: Tensor,
    grads: Mapping[Tensor, Tensor],
    settings: OptimiserSettings,
    gate: Tensor | None = None,
) -> Optimiser:
    """The optimiser that the settings are for.

    Args:
        loss, grads, gate: as `Optimiser`.

    >>> import yupana as yp
    >>> loss = yp.Context().param((3,), name="w").sqr().sum()
    >>> type(make_optimiser(loss, yp.gradients(loss), SgdSettings())).__name__
    'Sgd'
    """
    if isinstance(settings, AdamWSettings):
        return AdamW(loss, grads, settings, gate)
    assert isinstance(settings, SgdSettings)
    return Sgd(loss, grads, settings, gate)


def _sum_of_squares(grads: Mapping[Tensor, Tensor]) -> Tensor:
    parts = [grad.sqr().sum() for grad in grads.values()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _clip_scale(norm: Tensor, clip: float) -> Tensor:
    """min(1, clip / norm), from ops that keep its digits."""
    if not clip:
        return norm * 0.0 + 1.0
    return clip / ((norm - clip).relu() + clip)
