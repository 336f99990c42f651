"""Compiled programs of a session: one that reads tokens, one that moves keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import Context
from yupana.graphlib.graph import Graph
from yupana.graphlib.ops import get_rows, set_rows
from yupana.models.decoder import Decoder
from yupana.models.kv_cache import KvCache

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


class Pass:
    """A program that reads up to `n` tokens, wherever they belong.

    Args:
        only_last: score what follows the last token only, not each.
    """

    def __init__(
        self, model: Decoder, cache: KvCache, n: int, only_last: bool, threads: int | None
    ) -> None:
        inputs = Context()  # of its own: they go when the program does
        tokens, positions, cells, wanted = (
            inputs.input(shape, "i32") for shape in ((1, n), (n,), (n,), (1,))
        )
        attend = cache.attend(cells)
        hidden = model.hidden(tokens, positions, attend, wanted if only_last else None)
        self._logits = model.output(hidden).reshape(1 if only_last else n, -1).output()
        self._program = Graph(self._logits).compile(threads)
        self._tokens: NDArray[Any] = tokens.data[0]
        self._positions, self._cells = positions.data, cells.data
        self._wanted = wanted.data
        self._only_last = only_last

    def run(self, ids: Ints, positions: Ints, cells: Ints) -> Floats:
        """Read tokens; scores (1, V) or (len(ids), V)."""
        n = len(ids)
        self._tokens[:n] = ids
        self._positions[:n] = positions
        self._cells[:n] = cells
        if n < len(self._tokens):  # what is left over is read too, and kept nowhere
            self._tokens[n:] = self._positions[n:] = 0
            self._cells[n:] = -1
        self._wanted[0] = n - 1
        self._program.run()
        scores = self._program.value(self._logits).view(np.float32)
        return scores if self._only_last else scores[:n]


class Mover:
    """A program that moves the keys of up to `n` cells in every layer to other positions."""

    def __init__(self, model: Decoder, cache: KvCache, n: int) -> None:
        inputs = Context()
        sources, targets, by = (inputs.input((n,), "i32") for _ in range(3))
        moved = []
        for keys in cache.keys:
            G, K = keys.shape[2:]
            table = keys.reshape(-1, G * K)
            rows = model.moved(get_rows(table, sources).reshape(n, G, K), by)
            moved.append(set_rows(table, rows.reshape(n, G * K), targets))
        self._program = Graph(moved).compile()
        self._sources, self._targets, self._by = sources.data, targets.data, by.data

    def run(self, sources: Ints, by: int) -> None:
        """Move the keys of cells `sources` by so many positions and as many cells."""
        n = len(sources)
        self._sources[:n], self._sources[n:] = sources, 0
        self._targets[:n], self._targets[n:] = sources + by, -1
        self._by[:] = by
        self._program.run()


def pass_size(n: int, most: int) -> int:
    """Tokens of the program that reads `n`: a power of two, or one and a half of it.

    So a few programs serve prompts of any length, and at most a third of their work is lost.

    >>> [pass_size(n, 48) for n in (1, 2, 3, 5, 7, 13, 24, 25, 33, 48)]
    [1, 2, 3, 6, 8, 16, 24, 32, 48, 48]
    """
    size = 1
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 and size > 1 else -(-size * 4 // 3)
    return min(size, most)
