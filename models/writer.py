"""A text that goes on for ever: read, drawn, and forgotten in its middle when the context is full.

This is the inner loop of llama.cpp's `main`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import SettingError
from yupana.models.sampling import RandomStream, Sampler
from yupana.models.session import Session
from yupana.models.timings import Timings


class Writer:
    """Reads tokens and draws others, in sequence 0 of a session.

    A token is evaluated when the next one is wanted, so that the last one drawn costs nothing.
    When the context is full, half of what is behind the first `keep` tokens is dropped.

    Args:
        session: not used by others meanwhile.
        sampler: is told of every token.
        stream: random numbers.
        keep: tokens at the beginning that are never dropped.
        shifts: False ends the text when the context is full, as a model that learned its
            positions does in any case.
        n_batch: tokens evaluated at once, at most; None: as many as the session does.

    Attributes:
        tokens: those in the cache of the session.
        pending: those after them that are not evaluated yet.
    Raises:
        SettingError: `keep` below 0, or `n_batch` below 1.

    >>> from yupana.models.llama import Llama, LlamaConfig
    >>> model = Llama(LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2)).init(seed=1)
    >>> writer = Writer(Session(model), Sampler(), RandomStream(3), keep=2)
    >>> writer.read([1, 2, 3])
    >>> len([writer.draw() for _ in range(20)]), len(writer.tokens) < 8, writer.tokens[:2]
    (20, True, [1, 2])
    """

    def __init__(
        self,
        session: Session,
        sampler: Sampler,
        stream: RandomStream,
        *,
        keep: int = 0,
        shifts: bool = True,
        n_batch: int | None = None,
    ) -> None:
        n_batch = session.n_batch if n_batch is None else n_batch
        for name, value, least in (("keep", keep, 0), ("n_batch", n_batch, 1)):
            if value < least:
                raise SettingError(f"writer: {name}: got {value}, want at least {least}.")
        self.session = session
        self.sampler = sampler
        self.stream = stream
        self.keep = keep
        self.shifts = shifts and session.model.reach is None
        self.timings = Timings()
        self.has_shifted = False
        self.tokens: list[int] = []
        self.pending: list[int] = []
        self._n_batch = n_batch
        self._logits: NDArray[np.float32] | None = None

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in ids:
            self.sampler.accept(token)
        self.pending += ids

    def draw(self) -> int | None:
        """Append a token that is drawn; None where the context is full and nothing is dropped.

        Raises:
            SettingError: there is nothing to go on from, or the tokens do not fit.
            NonFiniteError: as `Sampler.pick`.
        """
        if not self.evaluate():
            return None
        if self._logits is None:
            raise SettingError("writer: the text is empty: got no tokens, want at least one.")
        with self.timings.sample.measured(1):
            token = self.sampler.pick(self._logits, self.stream)
        self.read([token])
        return token

    def evaluate(self) -> bool:
        """Evaluate what is pending; False where there is no room."""
        while self.pending:
            count = min(len(self.pending), self._n_batch, self.session.n_ctx - 1)
            room = self._make_room(count)
            if room == 0:
                return False
            some = self.pending[: min(count, room)]
            share = self.timings.eval if len(some) == 1 else self.timings.prompt
            with share.measured(len(some)):
                self._logits = self.session.eval(some)
            self.tokens += some
            del self.pending[: len(some)]
        return True

    def resume(self, tokens: Sequence[int], state: Mapping[str, NDArray[Any]]) -> int:
        """Take over what is of use of a saved state, for the text that is pending.

        Args:
            tokens: those of the state, which is one of `Session.state`.
        Returns:
            how many of the pending tokens need not be evaluated. The last one always does.
        Raises:
            SettingError: the state does not fit the session.
        """
        same = _common(tokens, self.pending)
        self.session.restore({name: array[:, :same] for name, array in state.items()})
        self.tokens = self.pending[:same]
        del self.pending[:same]
        return same

    def reread(self, ids: Sequence[int]) -> None:
        """Forget the text and read another; where it begins alike, the cache is kept."""
        same = _common(self.tokens, ids)
        self.session.truncate(same)
        del self.tokens[same:]
        self.pending.clear()
        self._logits = None
        self.read(ids[same:])

    def _make_room(self, count: int) -> int:
        """Room for `count` tokens or fewer; 0 where there can be none."""
        n_ctx = self.session.n_ctx
        while self.shifts and len(self.tokens) > self.keep and len(self.tokens) + count >= n_ctx:
            discard = max((len(self.tokens) - self.keep) // 2, 1)
            self.session.shift(self.keep, discard)
            del self.tokens[self.keep : self.keep + discard]
            self.has_shifted = True
        # Like llama.cpp, which leaves the last place of a context that shifts empty.
        return max(n_ctx - len(self.tokens) - self.shifts, 0)


def _common(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens at the beginning are alike, not counting the last one wanted."""
    same, limit = 0, min(len(tokens), len(wanted) - 1)
    while same < limit and tokens[same] == wanted[same]:
        same += 1
    return same
