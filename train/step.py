"""The compiled steps of a run: training as one program, and the loss alone as another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.autograd import gradients
from yupana.graphlib.budget import Checkpoints, recompute
from yupana.graphlib.config import config
from yupana.graphlib.context import Context
from yupana.graphlib.errors import NonFiniteError, require
from yupana.graphlib.finite import first_nonfinite
from yupana.graphlib.graph import Graph
from yupana.graphlib.op import Matmul
from yupana.graphlib.ops import cpy
from yupana.graphlib.program import Prepared, Program, prepare
from yupana.graphlib.tensor import Tensor
from yupana.train.data import Batch
from yupana.train.optimiser import OptimiserSettings, make_optimiser

Arrays = Sequence[NDArray[Any] | None]  # one per input; those that are None are left out


@dataclass(frozen=True)
class StepResult:
    """What one training step says of itself."""

    loss: float  # before the update
    norm: float  # of the gradients, before clipping


class Step(ABC):
    """One update of the parameters from one batch, whatever the optimiser.

    Args:
        loss: one element, recorded on parameters and `inputs`; a mean over what counts.
        inputs: leaves that hold a batch, in the order of a batch's arrays.
        params: those that are trained.
        n_parts: a batch is so many times as large as the inputs, and goes through them in parts.

    Attributes:
        plain_loss: the loss that is looked at for validation: without dropout, where there is one.
        before: called with the number of each part that is trained on, counted over all steps.
        kind: of the optimiser, as checkpoints have it.
        state: leaves that it needs to go on, by name.
        graph: what one part goes through.
        n_runs: of that graph, in one update at least.
        aside_bytes: memory that the update takes outside of that graph.
    """

    kind: str
    graph: Graph
    n_runs: int
    aside_bytes: int = 0

    def __init__(
        self, loss: Tensor, inputs: Sequence[Tensor], params: Sequence[Tensor], n_parts: int = 1
    ) -> None:
        require("train", "grad_acc", n_parts, n_parts >= 1, "at least 1")
        self.loss, self.inputs, self.n_parts = loss, tuple(inputs), n_parts
        self.params = tuple(params)
        self.n_runs = n_parts
        self.state: Mapping[str, Tensor] = {}
        self.plain_loss = loss
        self.before: Callable[[int], None] = lambda part: None
        self.matmul: Matmul = "f32"  # see `Graph.compile`
        self._threads: int | None = None
        self._program: Program | None = None
        self._loss_program: Program | None = None

    @abstractmethod
    def run(self, batch: Arrays, step: int, factor: float = 1.0) -> StepResult:
        """One update on one batch.

        Args:
            batch: one array per input.
            step: number of updates made before.
            factor: of the learning rate.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite. Says which node was the
                first; parameters and state are what they were before.
        """

    @abstractmethod
    def rate(self, factor: float) -> float:
        """The learning rate under a factor of the schedule."""

    def compile(self, threads: int | None = None) -> Program:
        """Compile the step for so many threads; `program` does it for as many as are worth it."""
        self._threads = threads
        self._program = Program(self.prepared, threads)
        return self._program

    @cached_property
    def prepared(self) -> Prepared:
        """The step planned, without any memory yet."""
        return prepare(self.graph, matmul=self.matmul)

    @property
    def program(self) -> Program:
        """The compiled step."""
        return self._program or self.compile()

    def loss_of(self, batch: Arrays) -> float:
        """The loss on one batch with the parameters as they are; nothing is updated."""
        if self._loss_program is None:
            prepared = prepare(Graph([self.plain_loss]), matmul=self.matmul)
            self._loss_program = Program(prepared, self._threads, lender=self.program)
        losses = []
        for part, share in self.parts(batch):
            self._feed(part)
            self._loss_program.run()
            losses.append(share * float(self._loss_program.value(self.plain_loss).reshape(())))
        return math.fsum(losses)

    def is_finite(self, batch: Arrays) -> bool:
        """Whether every parameter is finite, and so is the loss they give on a batch."""
        finite = all(np.isfinite(p.data).all() for p in self.params)
        return finite and math.isfinite(self.loss_of(batch))

    def parts(self, batch: Arrays) -> list[tuple[Arrays, float]]:
        """A batch in parts that fill the inputs, each with its share of what counts."""
        if self.n_parts == 1:
            return [(batch, 1.0)]
        arrays = [None if values is None else np.asarray(values) for values in batch]
        split = [[None] * self.n_parts if a is None else np.split(a, self.n_parts) for a in arrays]
        parts: list[Arrays] = [*zip(*split, strict=True)]
        if isinstance(batch, Batch):
            parts = [Batch._make(part) for part in parts]
        counts = [count(part) for part in parts]
        total = sum(counts)
        return [(p, n / total if total else 0.0) for p, n in zip(parts, counts, strict=True)]

    def _feed(self, batch: Arrays) -> None:
        given = [values for values in batch if values is not None]
        for leaf, values in zip(self.inputs, given, strict=True):
            leaf.set(values)


def count(batch: Arrays) -> int:
    """Over how much a loss on this batch is a mean: tokens learned, or else rows."""
    if isinstance(batch, Batch):
        return int(np.count_nonzero(batch.targets >= 0))
    return len(batch[0]) if batch and np.ndim(batch[0]) else 1  # type: ignore[arg-type]


class TrainingStep(Step):
    """Loss, gradients, clipping and update recorded in one graph and run by one call.

    With several parts, gradients are added up in memory of their own, each part with its share,
    and the update comes with the last: the result is that of the whole batch at once.

    Args:
        loss, inputs: see `Step`.
        settings: of the optimiser.
        checkpoints: see `Graph.backward`.
        n_parts: see `Step`.

    >>> import yupana as yp
    >>> from yupana.train.optimiser import AdamWSettings
    >>> ctx = yp.Context()
    >>> w, x = ctx.param((2,), name="w"), ctx.input((2,), name="x")
    >>> step = TrainingStep((w - x).sqr().sum(), [x], AdamWSettings(alpha=0.1, decay=0.0))
    >>> [round(step.run([[1.0, -1.0]], k).loss, 2) for k in range(3)]
    [2.0, 1.62, 1.28]
    """

    def __init__(
        self,
        loss: Tensor,
        inputs: Sequence[Tensor],
        settings: OptimiserSettings,
        checkpoints: Checkpoints = None,
        n_parts: int = 1,
    ) -> None:
        grads: Mapping[Tensor, Tensor] = gradients(loss)
        super().__init__(loss, inputs, [*grads], n_parts)
        self.kind, self._alpha = settings.kind, settings.alpha
        self._sums = _Sums(grads, loss.context.no_alloc) if n_parts > 1 else None
        if self._sums:
            grads = self._sums.totals
        gate = self._sums.gate if self._sums else None
        self.optimiser = o = make_optimiser(loss, grads, settings, gate)
        self.state = o.state
        self.graph = Graph([loss, o.norm, o.scale, *o.updates])
        recompute(loss, self.graph.outputs, checkpoints)

    def rate(self, factor: float) -> float:
        """The learning rate under a factor of the schedule."""
        return self._alpha * factor

    def run(self, batch: Arrays, step: int, factor: float = 1.0) -> StepResult:
        """One update on one batch; see `Step.run`."""
        program = self.program
        self.optimiser.set(step, factor)
        losses = []
        if self._sums:
            self._sums.clear()
        for k, (part, share) in enumerate(self.parts(batch), 1):
            self.before(step * self.n_parts + k - 1)
            self._feed(part)
            if self._sums:
                self._sums.set(share, is_last=k == self.n_parts)
            program.run()
            losses.append(share * self.loss.item())
            if not math.isfinite(losses[-1] + self.optimiser.norm.item()):
                raise NonFiniteError(self._explain(step))
        return StepResult(math.fsum(losses), self.optimiser.norm.item())

    def _explain(self, step: int) -> str:
        loss = self.loss.item()
        if self._sums:
            self._sums.clear()
            self._sums.set(1.0, is_last=True)
        found = first_nonfinite(self.graph, self.matmul)
        site = f", recorded at {found.tensor.site}" if found and config.debug else ""
        first = f" First in {found}{site}." if found else ""
        return (
            f"train: values turned non-finite in step {step + 1}: got loss {loss:g}, want finite "
            f"loss and gradients.{first} The step was not taken. Lower the learning rate."
        )


class _Sums:
    """Gradients added up over the parts of a batch.

    Attributes:
        totals: parameter to the sum so far, the present part included.
        gate: 0 in the last part, else NaN, which keeps the optimiser from its step.
    """

    def __init__(self, grads: Mapping[Tensor, Tensor], no_alloc: bool) -> None:
        context = Context(no_alloc=no_alloc)
        self._share = context.input((), name="share")
        self.gate = context.input((), name="gate")
        self._sums = {p: context.leaf(p.shape, p.dtype, f"sum of {p.name}") for p in grads}
        self.totals = {
            param: cpy(grad * self._share + self._sums[param], self._sums[param])
            for param, grad in grads.items()
        }

    def clear(self) -> None:
        """Begin a batch."""
        for total in self._sums.values():
            total.set(0.0)

    def set(self, share: float, is_last: bool) -> None:
        """Begin a part."""
        self._share.set(share)
        self.gate.set(0.0 if is_last else math.nan)


class Evaluation:
    """The mean loss over given windows of data.

    Args:
        step: the training step whose loss and parameters are meant.
        windows: one array per input, each (n, …) with n windows, at least one. A batch is as
            many as the inputs take; windows that do not fill a last batch are left out, and too
            few for one batch are repeated.
    """

    def __init__(self, step: Step, windows: Arrays) -> None:
        self.step = step
        size, n = step.inputs[0].shape[0] * step.n_parts, len(windows[0])  # type: ignore[arg-type]
        arrays = [None if part is None else np.asarray(part) for part in windows]
        if n < size:
            arrays = [None if a is None else np.resize(a, (size, *a.shape[1:])) for a in arrays]
        starts = range(0, max(n, size) - size + 1, size)
        self.batches: list[Arrays] = [
            [None if a is None else a[k : k + size] for a in arrays] for k in starts
        ]
        if isinstance(windows, Batch):
            self.batches = [Batch._make(batch) for batch in self.batches]
        counts = [count(batch) for batch in self.batches]
        self._shares = [n / max(sum(counts), 1) for n in counts]

    def run(self) -> float:
        """The mean loss with the parameters as they are."""
        pairs = zip(self._shares, self.batches, strict=True)
        return math.fsum(share * self.step.loss_of(batch) for share, batch in pairs)
