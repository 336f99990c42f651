"""The steps of the sampling chain that make repetitions less likely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from yupana.models.sampling_math import power
from yupana.models.sampling_steps import Candidates
from yupana.models.tokenizer_base import Tokenizer

# Breakers: of each token that begins one, the tokens that may follow to complete it.
Breakers = Mapping[int, Sequence[tuple[int, ...]]]

_MOST_BYTES, _MOST_TOKENS = 40, 20  # of a breaker


def penalties(
    c: Candidates,
    recent: Sequence[int],
    repeat: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
    spared: Iterable[int] = (),
) -> Candidates:
    """Lower the scores of tokens that occurred.

    A positive score is divided by `repeat`, another multiplied (Keskar et al. 2019 only divide,
    which would favour tokens with negative scores); then `frequency` is taken off for each
    occurrence, and `presence` once.

    Args:
        recent: the tokens looked at.
        spared: tokens that are never penalised.

    >>> c = Candidates(np.arange(3), np.array([2.0, -2.0, 2.0]))
    >>> penalties(c, recent=[0, 1, 0], repeat=2.0, frequency=0.25).scores.tolist()
    [0.5, -4.25, 2.0]
    """
    if not recent or (repeat == 1 and frequency == 0 and presence == 0):
        return c
    tokens, counts = np.unique(np.array(recent, np.int64), return_counts=True)
    is_meant = ~np.isin(tokens, list(spared))
    tokens, counts = tokens[is_meant], counts[is_meant]
    which, at = c.places(tokens)
    scores = c.scores.copy()
    old = scores[at]
    new = np.where(old <= 0, old * repeat, old / repeat)
    scores[at] = new - (counts[which] * frequency + presence)
    return c.with_scores(scores)


def dry(
    c: Candidates,
    recent: Sequence[int],
    multiplier: float,
    base: float = 1.75,
    allowed_length: int = 2,
    breakers: Breakers | None = None,
) -> Candidates:
    """DRY ("don't repeat yourself"): lower the scores of tokens that prolong a repetition.

    A token that would make a sequence of n + 1 tokens, which occurred before, complete loses
    multiplier * base^(n - allowed_length), if n >= allowed_length. Sequences do not reach across
    a breaker, such as the end of a line.

    Args:
        recent: the tokens looked at, the last one last.

    >>> c = Candidates(np.arange(4), np.zeros(4))
    >>> dry(c, recent=[1, 2, 3, 1, 2], multiplier=0.5).scores.tolist()  # "1 2" went on with 3
    [0.0, 0.0, 0.0, -0.5]
    """
    breakers = breakers or {}
    if multiplier == 0 or base < 1 or len(recent) <= allowed_length:
        return c
    limit = _since_breaker(recent, breakers)
    if limit < allowed_length:
        return c
    longest: dict[int, int] = {}
    for token, length in zip(recent[1:], _repeats(recent), strict=True):
        # Then `token` came after `length` tokens that are now the last ones.
        if min(length, limit) >= allowed_length:
            longest[token] = max(longest.get(token, 0), min(length, limit))
    meant = [token for token in longest if () not in breakers.get(token, ())]
    which, at = c.places(np.array(meant, np.int64))
    scores = c.scores.copy()
    for k, place in zip(which.tolist(), at.tolist(), strict=True):
        scores[place] -= multiplier * power(base, longest[meant[k]] - allowed_length)
    return c.with_scores(scores)


def _since_breaker(recent: Sequence[int], breakers: Breakers) -> int:
    """How many tokens follow the last breaker."""
    for i in range(len(recent)):
        start = len(recent) - 1 - i
        tails = breakers.get(recent[start], ())
        fits = [len(t) for t in tails if tuple(recent[start + 1 : start + 1 + len(t)]) == t]
        if fits:
            return i - max(fits)
    return len(recent)


def _repeats(recent: Sequence[int]) -> list[int]:
    """For each k >= 1, how many tokens before `recent[k]` are those that `recent` ends with.

    The Z-algorithm on the reversed sequence: linear in its length.
    """
    back = recent[::-1]
    n = len(back)
    lengths = [0] * n  # of the common beginning of back and back[k:]
    left = right = 0  # the match that reaches farthest: back[left:right]
    for k in range(1, n):
        length = min(right - k, lengths[k - left]) if k < right else 0
        while k + length < n and back[length] == back[k + length]:
            length += 1
        lengths[k] = length
        if k + length > right:
            left, right = k, k + length
    # back[k] is recent[n - 1 - k]; the token after it is recent[n - k].
    return lengths[:0:-1]


def find_breakers(texts: Iterable[str], tokenizer: Tokenizer) -> dict[int, list[tuple[int, ...]]]:
    """The tokens that make up or contain the texts at which repetitions end for DRY.

    A token that contains a text breaks alone. One that ends as a text begins breaks together with
    the tokens of the rest. As in llama.cpp, texts are cut after 40 bytes, rests after 20 tokens.
    """
    found: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        raw = text.encode()[:_MOST_BYTES]
        for token in range(len(tokenizer)):
            word = tokenizer.raw(token, special=True)
            if tokenizer.add_space_prefix:
                word = word.removeprefix(b" ")
            if raw in word:
                found.setdefault(token, []).append(())
                continue
            for size in range(1, min(len(raw), len(word) + 1)):
                if not word.endswith(raw[:size]):
                    continue
                rest = raw[size:].decode("utf-8", "ignore")
                ids = tokenizer.encode(rest, add_special=False, parse_special=False)
                tail = tuple(ids[:_MOST_TOKENS])
                if tail not in found.setdefault(token, []):
                    found[token].append(tail)
    return found
