"""Which tokens can go on with a text that follows a grammar.

The text is followed byte by byte. What may come next is a set of stacks, each the symbols that are
still to be matched; sets that came up before are found again, so that a token costs little even
with a large vocabulary. What is remembered is only to be faster: it is forgotten when it is much.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import SettingError
from yupana.models.grammar import Grammar, Sequence
from yupana.models.tokenizer_base import Tokenizer

State = frozenset[int]  # of stacks; 0, the empty one, is a text that may end

# That are kept.
_MOST_MASKS: Final = 1024
_MOST_STEPS: Final = 1 << 16
_MOST_STACKS: Final = 1 << 16
_IDS: Final = -1  # key of the tokens that end at a place of the tree


class GrammarFilter:
    """Follows a text, and tells which tokens go on with it.

    Args:
        grammar: rules of the text.
        tokenizer: what tokens stand for.
    """

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer) -> None:
        self._grammar, self._tokenizer = grammar, tokenizer
        self._tree: dict[int, Any] = {}  # the tokens by their bytes
        ends = tokenizer.ends
        for token in range(len(tokenizer)):
            piece = tokenizer.raw(token)
            if piece and token not in ends:
                place = self._tree
                for byte in piece:
                    place = place.setdefault(byte, {})
                place.setdefault(_IDS, []).append(token)
        # A stack is a place in a sequence and the stack below it; equal ones have one number.
        self._stacks: list[tuple[Sequence, int, int]] = [((), 0, 0)]
        self._numbers: dict[tuple[Sequence, int, int], int] = {}
        self._most_stacks = _MOST_STACKS
        self._steps: dict[tuple[State, int], State] = {}
        self._masks: dict[State, NDArray[np.bool_]] = {}
        self.reset()

    def reset(self) -> None:
        """Begin a new text."""
        tops = ((sequence, 0, 0) for sequence in self._grammar.rules[self._grammar.root])
        self._state = self._opened(self._number(*top) for top in tops)

    def allows(self, token: int) -> bool:
        """Whether a token can come next; an end token if the text is whole."""
        if token in self._tokenizer.ends:
            return 0 in self._state
        piece = self._tokenizer.raw(token)
        return bool(piece) and bool(self._after(piece))

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token of the vocabulary can come next, (V,).

        Raises:
            SettingError: none can, since no token has the bytes that are wanted.
        """
        mask = self._masks.get(self._state)
        if mask is None:
            mask = np.zeros(len(self._tokenizer), np.bool_)
            mask[self._below(self._tree, self._state)] = True
            mask[[*self._tokenizer.ends]] = 0 in self._state
            if len(self._masks) >= _MOST_MASKS:
                self._masks.clear()
            self._masks[self._state] = mask
        if not mask.any():
            raise SettingError(
                "grammar: no token goes on: got a text that must go on with bytes "
                f"{self._wanted()}, want a vocabulary that has them."
            )
        return mask

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed; after an end token a new text begins.

        Raises:
            SettingError: it is not allowed.
        """
        if not self.allows(token):
            raise SettingError(f"grammar: got token {token}, want one that can come next.")
        if token in self._tokenizer.ends:
            self.reset()
        else:
            self._state = self._after(self._tokenizer.raw(token))
        if len(self._stacks) > self._most_stacks:
            self._forget_stacks()

    def _after(self, piece: bytes) -> State:
        state = self._state
        for byte in piece:
            state = self._step(state, byte)
        return state

    def _below(self, tree: dict[int, Any], state: State) -> list[int]:
        """Tokens of a part of the tree that can follow."""
        found, waiting = [], [(tree, state)]
        while waiting:
            place, state = waiting.pop()
            for byte, further in place.items():
                if byte == _IDS:
                    found += further
                elif after := self._step(state, byte):
                    waiting.append((further, after))
        return found

    def _step(self, state: State, byte: int) -> State:
        """The stacks that are left after a byte; none if it cannot come."""
        key = state, byte
        if key not in self._steps:
            sets, left = self._grammar.sets, []
            for stack in state:
                sequence, at, below = self._stacks[stack]
                if stack and sets[-1 - sequence[at]] >> byte & 1:
                    left.append(self._number(sequence, at + 1, below))
            if len(self._steps) >= _MOST_STEPS:
                self._steps.clear()
            self._steps[key] = self._opened(left)
        return self._steps[key]

    def _forget_stacks(self) -> None:
        """Number anew the stacks that the text needs; others come again when they are wanted."""
        old, self._stacks = self._stacks, self._stacks[:1]
        for memory in (self._numbers, self._steps, self._masks):  # all of them have old numbers
            memory.clear()
        state = []
        for stack in self._state:
            levels = []
            while stack:
                levels.append(old[stack])
                stack = old[stack][-1]
            for sequence, at, _ in reversed(levels):
                stack = self._number(sequence, at, stack)
            state.append(stack)
        self._state = frozenset(state)
        self._most_stacks = max(_MOST_STACKS, 2 * len(self._stacks))  # not again with each token

    def _number(self, sequence: Sequence, at: int, below: int) -> int:
        """The number of a stack; of the one below where the sequence is at its end."""
        if at == len(sequence):
            return below
        key = sequence, at, below
        if key not in self._numbers:
            self._numbers[key] = len(self._stacks)
            self._stacks.append(key)
        return self._numbers[key]

    def _opened(self, stacks: Any) -> State:
        """The same with rules on top replaced by all they may begin with."""
        found, waiting = set(), [*stacks]
        seen = set(waiting)
        while waiting:
            stack = waiting.pop()
            sequence, at, below = self._stacks[stack]
            if stack == 0 or sequence[at] < 0:
                found.add(stack)
                continue
            behind = self._number(sequence, at + 1, below)
            for alternative in self._grammar.rules[sequence[at]]:
                further = self._number(alternative, 0, behind)
                if further not in seen:
                    seen.add(further)
                    waiting.append(further)
        return frozenset(found)

    def _wanted(self) -> list[str]:
        members = 0
        for stack in self._state - {0}:
            sequence, at, _ = self._stacks[stack]
            members |= self._grammar.sets[-1 - sequence[at]]
        return [f"0x{byte:02X}" for byte in range(256) if members >> byte & 1][:8]
