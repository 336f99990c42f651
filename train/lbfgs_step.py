"""L-BFGS as a training step: one search on each batch, driving evaluations of one program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.autograd import gradients
from yupana.graphlib.budget import Checkpoints
from yupana.graphlib.errors import NonFiniteError
from yupana.graphlib.graph import Graph
from yupana.graphlib.tensor import Tensor
from yupana.train.lbfgs import LbfgsResult, LbfgsSettings, LbfgsStatus, Vector, lbfgs
from yupana.train.step import Arrays, Step, StepResult

_VECTORS = 10  # as long as all parameters that a search holds, beside 2 for each step it remembers


class FlatParams:
    """Parameters and their gradients as one vector each."""

    def __init__(self, grads: Mapping[Tensor, Tensor]) -> None:
        self._grads = dict(grads)
        size = sum(param.size for param in grads)
        self._gradient = np.empty(size, np.float32)

    def values(self) -> NDArray[np.float32]:
        """A copy of the parameters."""
        return np.concatenate([param.data.ravel() for param in self._grads])

    def write(self, x: Vector) -> None:
        """Set the parameters."""
        start = 0
        for param in self._grads:
            param.data[...] = x[start : start + param.size].reshape(param.shape)
            start += param.size

    def gradient(self) -> NDArray[np.float32]:
        """The gradient as last computed, in memory that the next call uses again."""
        np.concatenate([g.numpy().ravel() for g in self._grads.values()], out=self._gradient)
        return self._gradient


class LbfgsStep(Step):
    """One L-BFGS search on each batch, as ggml's baby-llama has it.

    Curvature is not carried from batch to batch, since each is another function; nor is there
    anything to go on from but the parameters. Batches should be large.

    Args:
        loss, inputs, n_parts: see `Step`.
        settings: of each search; `n_iter` iterations at most.
        checkpoints: see `Graph.backward`.

    >>> import yupana as yp
    >>> ctx = yp.Context()
    >>> w, x = ctx.param((2,), name="w"), ctx.input((2,), name="x")
    >>> step = LbfgsStep((w - x).sqr().sum(), [x], LbfgsSettings(n_iter=4))
    >>> [round(step.run([[1.0, -1.0]], k).loss, 2) for k in range(2)]
    [2.0, 0.0]
    """

    kind = "lbfgs"

    def __init__(
        self,
        loss: Tensor,
        inputs: Sequence[Tensor],
        settings: LbfgsSettings,
        checkpoints: Checkpoints = None,
        n_parts: int = 1,
    ) -> None:
        grads = gradients(loss, checkpoints)
        super().__init__(loss, inputs, [*grads], n_parts)
        self.settings = settings
        self.graph = Graph([loss, *grads.values()])
        self.flat = FlatParams(grads)
        self.n_runs = n_parts * (settings.n_iter + 1)
        vectors = 2 * settings.m + _VECTORS
        self.aside_bytes = vectors * 4 * sum(param.size for param in self.params)

    def rate(self, factor: float) -> float:
        """1: the line search finds the length of each step, the schedule does not count."""
        return 1.0

    def evaluate(self, batch: Arrays, x: Vector) -> tuple[float, Vector]:
        """Loss and gradient at the parameters `x` on one batch."""
        self.flat.write(x)
        losses, total = [], None
        for part, share in self.parts(batch):
            self._feed(part)
            self.program.run()
            losses.append(share * self.loss.item())
            gradient = self.flat.gradient()
            if self.n_parts > 1:
                gradient = gradient * np.float32(share)
                total = gradient if total is None else total + gradient
        return math.fsum(losses), gradient if total is None else total

    def search(self, batch: Arrays) -> tuple[LbfgsResult, float]:
        """Search on one batch; the parameters are set to what was found.

        Returns:
            The result, and the loss at the start.
        """
        losses: list[float] = []

        def evaluate(x: Vector) -> tuple[float, Vector]:
            loss, gradient = self.evaluate(batch, x)
            losses.append(loss)
            return loss, gradient

        start = self.flat.values()
        result = lbfgs(evaluate, start, self.settings)
        self.flat.write(start if math.isnan(result.loss) else result.x)
        return result, losses[0]

    def run(self, batch: Arrays, step: int, factor: float = 1.0) -> StepResult:
        """One search; the norm is that of the gradient at its end. See `Step.run`.

        Raises:
            NonFiniteError: loss or gradient at the start is not finite.
        """
        self.before(step)
        result, before = self.search(batch)
        norm = float(np.linalg.norm(result.gradient.astype(np.float64)))
        if result.status is LbfgsStatus.NON_FINITE and not math.isfinite(before + norm):
            raise NonFiniteError(
                f"train: values turned non-finite in step {step + 1}: got loss {before:g}, want "
                "finite loss and gradients. The step was not taken."
            )
        return StepResult(before, norm)
