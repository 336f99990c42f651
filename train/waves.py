"""The training program of ggml's baby-llama: one L-BFGS search per example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from yupana.graphlib.context import Context
from yupana.models.baby_llama import N_BATCH, N_EXAMPLES, BabyLlama, example
from yupana.train.lbfgs import LbfgsSettings, LbfgsStatus
from yupana.train.lbfgs_step import LbfgsStep
from yupana.train.step import Arrays

SETTINGS = LbfgsSettings(m=6, n_iter=16)


@dataclass(frozen=True)
class Search:
    """What the search on one example came to."""

    number: int  # of the example
    before: float  # squared error at its start
    after: float  # and at its end
    status: LbfgsStatus
    n_evaluations: int


class WaveTrainer:
    """Squared error and gradients of a model on one example, compiled once.

    >>> from yupana.models.baby_llama import baby_config
    >>> trainer = WaveTrainer(BabyLlama(baby_config()).init(seed=1), threads=1)
    >>> search = next(trainer.train(1))
    >>> search.after < search.before
    True
    """

    def __init__(
        self,
        model: BabyLlama,
        n_batch: int = N_BATCH,
        settings: LbfgsSettings = SETTINGS,
        threads: int | None = None,
    ) -> None:
        self.model, self.n_batch = model, n_batch
        c = model.config
        inputs = Context()
        tokens = inputs.input((n_batch, c.n_ctx), "i32", "tokens")
        targets = inputs.input((n_batch, c.n_ctx, c.n_vocab), name="targets")
        error = model.squared_error(tokens, targets)
        self.step = LbfgsStep(error, [tokens, targets], settings)
        self.step.compile(threads)

    def train(self, n_examples: int = N_EXAMPLES) -> Iterator[Search]:
        """Train on the examples in turn; the model holds the result of each when it is given."""
        for number in range(n_examples):
            result, before = self.step.search(self.example(number))
            yield Search(number, before, result.loss, result.status, result.n_evaluations)

    def example(self, number: int) -> Arrays:
        """The inputs of one example."""
        return example(number, self.model.config, self.n_batch)
