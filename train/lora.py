"""LoRA as it is trained: low-rank pairs beside frozen weights, y = W x + s · B (A x).

The product B · A is never formed for a matrix, and W, of whatever type, has no gradient. B starts
at zero, so training starts from the model as it is; s is the same in training, use and export.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.errors import SettingError
from yupana.graphlib.ops import detach, dropout, mul_mat, sqrt, sum_rows, transpose
from yupana.graphlib.tensor import Tensor
from yupana.models.lora import Adapter, Beside, Floats, rows_of
from yupana.train.lora_settings import LoraSettings

_SEEDS = 1 << 24  # that dropout takes


@dataclass(frozen=True)
class Pair:
    """The parameters beside one weight (outputs, inputs).

    Attributes:
        a: (R, inputs). b: (outputs, R). Norms count as (1, D).
        factor: s.
        salt: tells its dropout from others.
        magnitude: (outputs,), of DoRA.
        squares: (outputs,) squared length of each row of the weight, of DoRA.
    """

    a: Tensor
    b: Tensor
    factor: float
    salt: int
    magnitude: Tensor | None = None
    squares: Tensor | None = None


class TrainedAdapter(Beside):
    """The pairs that are trained, as parts of the graphs a model records.

    Args:
        weights: name to frozen weight of the model.
        settings: see `LoraSettings`.
        seed: of the matrices A, uniform in ±1/sqrt(inputs) as in PEFT, and of dropout.
        no_alloc: count only; nothing has values.
    Raises:
        SettingError: nothing would be adapted though lora_r is not 0, or what is asked for is not
            in the model.

    >>> ctx = Context()
    >>> w = ctx.leaf((6, 4), name="blk.0.attn_q.weight")
    >>> adapter = TrainedAdapter({"blk.0.attn_q.weight": w}, LoraSettings(lora_r=2), seed=1)
    >>> [(name, p.shape) for name, p in adapter.parameters.items()]
    [('blk.0.attn_q.weight.lora_a', (2, 4)), ('blk.0.attn_q.weight.lora_b', (6, 2))]
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        settings: LoraSettings,
        seed: int = 0,
        no_alloc: bool = False,
    ) -> None:
        settings.check_weights(weights)
        self.settings = settings
        self.context = Context(no_alloc=no_alloc)
        # What dropout draws with: seed of the run and number of the step.
        self.seed = (
            self.context.input((2,), "i32", "dropout seed") if settings.lora_dropout else None
        )
        self.pairs: dict[str, Pair] = {}
        self._weights = weights
        self._seed = seed % _SEEDS
        self._drops = self.seed is not None
        random = np.random.default_rng(seed)
        for name, w in weights.items():
            if rank := settings.rank_of(name):
                self.pairs[name] = self._pair(name, w, rank, random)
        if not self.pairs and settings.lora_r:
            raise SettingError(
                f"lora: nothing to adapt: got target_modules {settings.target_modules}, layers "
                f"{settings.lora_layers or 'all'!r}, want some of {[*weights][:10]}, …"
            )

    def _pair(self, name: str, w: Tensor, rank: int, random: np.random.Generator) -> Pair:
        outputs, inputs = w.shape if w.ndim == 2 else (1, *w.shape)
        a = self.context.param((rank, inputs), name=f"{name}.lora_a")
        b = self.context.param((outputs, rank), name=f"{name}.lora_b")
        has_length = self.settings.use_dora and w.ndim == 2
        magnitude = squares = None
        if has_length:
            magnitude = self.context.param((outputs,), name=f"{name}.magnitude")
            squares = self.context.leaf((outputs,), name=f"{name}.squares")
        if not self.context.no_alloc:
            a.set(random.uniform(-1, 1, a.shape).astype(np.float32) / np.float32(math.sqrt(inputs)))
            if magnitude is not None and squares is not None:
                parts = [np.square(rows).sum(axis=1) for _, rows in rows_of(w)]
                squares.set(np.concatenate(parts))
                magnitude.set(np.sqrt(squares.numpy()))
        factor = self.settings.factor(rank)
        return Pair(a, b, factor, len(self.pairs), magnitude, squares)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Name to trained tensor: "NAME.lora_a", "NAME.lora_b" and, of DoRA, "NAME.magnitude"."""
        parts = ((p.a, p.b, p.magnitude) for p in self.pairs.values())
        return {t.name: t for part in parts for t in part if t is not None}

    @property
    def factors(self) -> dict[str, float]:
        """Name of an adapted weight to s."""
        return {name: pair.factor for name, pair in self.pairs.items()}

    def set_step(self, step: int) -> None:
        """Make dropout draw for update number `step`."""
        if self.seed is not None:
            self.seed.set([self._seed, step % _SEEDS])

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Record graphs that drop nothing: those of validation."""
        self._drops, before = False, self._drops
        try:
            yield
        finally:
            self._drops = before

    def adapter(self, name: str) -> Adapter:
        """What was learned, as files hold it.

        Files multiply by alpha / rank; what rsLoRA and pairs of several ranks need beyond that
        goes into B.
        """
        rank = max(p.a.shape[0] for p in self.pairs.values())
        alpha = self.settings.factor(rank) * rank
        pairs: dict[str, tuple[Floats, Floats]] = {}
        for weight, p in self.pairs.items():
            a, b = (t.numpy().astype(np.float32, copy=False) for t in (p.a, p.b))
            pairs[weight] = a, np.asarray(b * np.float32(p.factor * len(a) / alpha))
        found = {weight: p.magnitude for weight, p in self.pairs.items() if p.magnitude is not None}
        lengths = {weight: m.numpy().astype(np.float32) for weight, m in found.items()}
        return Adapter(name, pairs, alpha, magnitudes=lengths)

    def pair_of(self, name: str) -> tuple[Tensor, Tensor, Tensor | float] | None:
        """See `Beside`."""
        pair = self.pairs.get(name)
        return None if pair is None else (pair.a, pair.b, pair.factor)

    def seen(self, name: str, x: Tensor) -> Tensor:
        """The input with some of it dropped."""
        if not self._drops or self.seed is None:
            return x
        return dropout(x, self.seed, self.settings.lora_dropout, self.pairs[name].salt)

    def gain_of(self, name: str) -> Tensor | None:
        """The trained length of each row over the length it has."""
        pair = self.pairs[name]
        if pair.magnitude is None:
            return None
        return pair.magnitude / _lengths(self._weights[name], pair)


def _lengths(w: Tensor, pair: Pair) -> Tensor:
    """Record the length of each row of W + s · B A, (outputs,), without forming the sum.

    It counts as constant in gradients, as in PEFT and in DoRA's paper (section 4.3).
    """
    a, b, s = pair.a, pair.b, pair.factor
    assert pair.squares is not None
    crossed = sum_rows(b * transpose(mul_mat(w, a)))  # 1/s · <row of W, row of s B A>
    squared = sum_rows(b * mul_mat(mul_mat(a, a), b))
    sums = crossed * (2 * s) + squared * (s * s)
    return detach(sqrt(pair.squares + sums.reshape(-1)))
