"""LoRA adapters: a low-rank part beside each matrix, y = W x + scale · B (A x).

The product B · A is never formed for a matrix. Scales are data: changing one changes no graph.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import from_storage
from yupana.graphlib.errors import SettingError
from yupana.graphlib.ops import get_rows, mul_mat, transpose
from yupana.graphlib.tensor import Tensor
from yupana.models.formats.gguf_cursor import shown

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
EMBEDDING = "token_embd.weight"  # whose rows are picked: files hold its pair the other way round

_ROWS = 256  # of a weight that are expanded at a time


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter file holds, for any model it fits.

    Attributes:
        name: tells it from others in use.
        pairs: name of a weight, as "blk.0.attn_q.weight", to (A, B): A (R, inputs) and B
            (outputs, R) f32 for a weight (outputs, inputs). The token embedding is a weight
            (V, D) like others; a norm of width D counts as (1, D).
        alpha: of the training; what an adapter adds is multiplied by alpha / R. None: by 1.
        architecture: of the model it was made for, "llama" or "starcoder".
        magnitudes: name of a weight to (outputs,), the lengths of the rows of the sum, where they
            were trained by themselves (DoRA).
    Raises:
        SettingError: a pair, or lengths, that do not fit each other.

    >>> adapter = Adapter("a", {"w": (np.ones((2, 3), "f4"), np.ones((4, 2), "f4"))}, alpha=8.0)
    >>> adapter.rank_of("w"), adapter.scale_of("w", 0.5)
    (2, 2.0)
    >>> adapter.merged("w", np.zeros((4, 3), "f4"), 0.5)[0]
    array([4., 4., 4.])
    """

    name: str
    pairs: Mapping[str, tuple[Floats, Floats]]
    alpha: float | None = None
    architecture: str = "llama"
    magnitudes: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for weight, (a, b) in self.pairs.items():
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
                raise SettingError(
                    f"adapter {self.name!r}: {shown(weight)}: got A {a.shape} and B {b.shape}, "
                    "want (R, inputs) and (outputs, R)."
                )
        for weight, lengths in self.magnitudes.items():
            if weight not in self.pairs or lengths.shape != self.pairs[weight][1].shape[:1]:
                raise SettingError(
                    f"adapter {self.name!r}: magnitude of {weight}: got {lengths.shape}, want one "
                    "for each row of its B."
                )

    def rank_of(self, weight: str) -> int:
        """R of a weight's pair."""
        a, _ = self.pairs[weight]
        return len(a)

    def scale_of(self, weight: str, scale: float = 1.0) -> float:
        """What B · A of a weight is multiplied with when the adapter is used with `scale`."""
        return scale * self.alpha / self.rank_of(weight) if self.alpha else scale

    def merged(
        self, weight: str, w: Floats | Doubles, scale: float = 1.0, first: int = 0
    ) -> Doubles:
        """A weight's rows with the adapter's part in them, in float64.

        Args:
            w: (rows, inputs), rows `first` and on of the weight.
        """
        sums = self.sums(weight, w, scale, first)
        if weight in self.magnitudes and scale:
            lengths = self.magnitudes[weight][first : first + len(w)]
            sums *= (lengths / np.linalg.norm(sums, axis=1))[:, None]
        return sums

    def sums(self, weight: str, w: Floats | Doubles, scale: float = 1.0, first: int = 0) -> Doubles:
        """W + scale · alpha / R · B A, before lengths are put right; arguments as for `merged`."""
        a, b = (half.astype(np.float64) for half in self.pairs[weight])
        added: Doubles = w + self.scale_of(weight, scale) * (b[first : first + len(w)] @ a)
        return added

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that every pair has its weight, and of its shape.

        Args:
            shapes: of the model's weights, by name.
        Raises:
            SettingError: a weight is not there, or of another shape.
        """
        for name, (a, b) in self.pairs.items():
            if name not in shapes:
                raise SettingError(
                    f"adapter {self.name!r}: the model has no such weight: got {name!r}, want one "
                    f"of its {len(shapes)}. The adapter belongs to another model."
                )
            shape = shapes[name]
            if (b.shape[0], a.shape[1]) != (shape if len(shape) == 2 else (1, *shape)):
                raise SettingError(
                    f"adapter {self.name!r}: {shown(name)}: got A {a.shape} and B {b.shape}, want "
                    f"(R, inputs) and (outputs, R) for a weight {shape}. The adapter belongs to "
                    "another model."
                )


def rows_of(w: Tensor) -> Iterator[tuple[int, Floats]]:
    """The rows of a weight of any type as f32, some at a time; with the number of the first."""
    for first in range(0, w.shape[0], _ROWS):
        yield first, from_storage(w.data[first : first + _ROWS], w.dtype).astype(np.float32)


class Beside(ABC):
    """Low-rank pairs beside weights, by name; for a weight without a pair nothing is added."""

    @abstractmethod
    def pair_of(self, name: str) -> tuple[Tensor, Tensor, Tensor | float] | None:
        """A (R, inputs), B (outputs, R) and the factor of their product; None: no pair."""

    def seen(self, name: str, x: Tensor) -> Tensor:
        """What A sees of the input of a weight."""
        return x

    def gain_of(self, name: str) -> Tensor | None:
        """What rows of the sum are multiplied by, (outputs,); None: by 1."""
        return None

    def add_product(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Record y + factor · B (A x), for y = x · Wᵀ."""
        pair = self.pair_of(name)
        if pair is None:
            return y
        a, b, factor = pair
        y = y + mul_mat(b, mul_mat(a, self.seen(name, x)) * factor)
        gain = self.gain_of(name)
        return y if gain is None else y * gain

    def add_rows(self, name: str, index: Tensor, y: Tensor) -> Tensor:
        """Record y + factor · (rows `index` of B) A, for the rows `index` of W."""
        pair = self.pair_of(name)
        if pair is None:
            return y
        a, b, factor = pair
        return y + mul_mat(transpose(a), get_rows(b, index) * factor)

    def add_delta(self, name: str, w: Tensor) -> Tensor:
        """Record w + factor · B A, for a weight with one axis."""
        pair = self.pair_of(name)
        if pair is None:
            return w
        a, b, factor = pair
        return w + mul_mat(transpose(a), b * factor).reshape(*w.shape)


class AttachedAdapter(Beside):
    """An adapter in use: its matrices as leaves, and its scale as data.

    Args:
        weights: those of the model, to measure the rows of sums where lengths were trained.
    """

    def __init__(self, adapter: Adapter, scale: float, weights: Mapping[str, Tensor]) -> None:
        self._adapter, self._weights = adapter, weights
        self._context = Context()  # of its own: the memory goes when the adapter does
        self._pairs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # A, B, factor (1,)
        for name, (a, b) in adapter.pairs.items():
            leaves = self._context.tensor(a), self._context.tensor(b)
            self._pairs[name] = (*leaves, self._context.leaf((1,)))
        # What rows of a product are multiplied by, (outputs,).
        self._gains = {n: self._context.leaf(m.shape) for n, m in adapter.magnitudes.items()}
        self.scale = scale

    @property
    def scale(self) -> float:
        """The user's part of the factor."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        if not isinstance(scale, int | float | np.number) or not math.isfinite(scale):
            raise SettingError(
                f"adapter {self._adapter.name!r}: scale: got {scale!r}, want a finite number."
            )
        self._scale = float(scale)
        for name, (_, _, factor) in self._pairs.items():
            factor.set([self._adapter.scale_of(name, self._scale)])
        for name, gain in self._gains.items():
            gain.set(self._gain(name) if scale else 1.0)

    def _gain(self, name: str) -> Floats:
        parts = rows_of(self._weights[name])
        sums = (self._adapter.sums(name, rows, self._scale, first) for first, rows in parts)
        lengths = np.concatenate([np.linalg.norm(part, axis=1) for part in sums])
        return np.asarray(self._adapter.magnitudes[name] / lengths, np.float32)

    def pair_of(self, name: str) -> tuple[Tensor, Tensor, Tensor | float] | None:
        """See `Beside`."""
        return self._pairs.get(name)

    def gain_of(self, name: str) -> Tensor | None:
        """See `Beside`."""
        return self._gains.get(name)
