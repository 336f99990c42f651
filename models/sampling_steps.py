"""The steps of the sampling chain that narrow the choice or change its temperature.

Each takes candidates and gives back candidates, as the sampler of llama.cpp that it is named
after. Where llama.cpp computes in float32, these compute in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.models.sampling_math import (
    LN2,
    Floats,
    entropy,
    exp,
    log,
    log_of,
    power,
    soft_max,
    total,
)

Ids = NDArray[np.int64]

_GROUP = 64  # scores looked at together
_FEW = 256  # of the best are mostly enough
# Sums of probabilities are compared with this much tolerance for rounding.
_SLACK = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tokens that may come next.

    Attributes:
        ids: (n,) token ids.
        scores: (n,) logits.
        is_sorted: the best stand first; equal ones in the order they had before.
        is_whole: all tokens, in order of id.
    """

    ids: Ids
    scores: Floats
    is_sorted: bool = False
    is_whole: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def best_first(self) -> Candidates:
        """The same, sorted."""
        if self.is_sorted:
            return self
        return replace(self[np.argsort(-self.scores, kind="stable")], is_sorted=True)

    def __getitem__(self, at: NDArray[Any] | slice) -> Candidates:
        """Those at the places `at`, which are in order."""
        return Candidates(self.ids[at], self.scores[at], self.is_sorted)

    def with_scores(self, scores: Floats) -> Candidates:
        """The same tokens with other scores."""
        return Candidates(self.ids, scores, is_whole=self.is_whole)

    def places(self, tokens: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of `tokens` (each once) are candidates, and at which places."""
        if self.is_whole:
            which = np.flatnonzero(tokens < len(self))
            return which, tokens[which]
        _, which, places = np.intersect1d(tokens, self.ids, assume_unique=True, return_indices=True)
        return which, places


def top_k(c: Candidates, k: int) -> Candidates:
    """Keep the `k` best; 0 keeps all.

    >>> c = Candidates(np.arange(4), log(np.array([0.5, 0.3, 0.15, 0.05])))
    >>> top_k(c, 2).ids.tolist()
    [0, 1]
    """
    if not 0 < k < len(c):
        return c
    if c.is_sorted:
        return c[:k]
    return c[places_of_best(c.scores, k)].best_first()


def places_of_best(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """The places of the `k` best scores, in order; of equal ones the first are taken."""
    if k >= len(scores):
        return np.arange(len(scores))
    places = None
    groups = len(scores) // _GROUP
    if groups > k:  # the k groups with the best best hold k scores as good as the worst of these
        best = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        places = np.flatnonzero(scores >= np.partition(best, groups - k)[groups - k])
        scores = scores[places]
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > last)
    ties = np.flatnonzero(scores == last)[: k - len(above)]
    found = np.sort(np.concatenate([above, ties]))
    return found if places is None else places[found]


def tail_free(c: Candidates, z: float, min_keep: int = 0) -> Candidates:
    """Cut where the curve of sorted probabilities runs flat (Phénix 2019).

    The sizes of its second differences, as parts of their sum, are added up until they exceed `z`.

    >>> c = Candidates(np.arange(5), log(np.array([0.5, 0.3, 0.1, 0.06, 0.04])))
    >>> tail_free(c, 0.5).ids.tolist(), tail_free(c, 0.9).ids.tolist()
    ([0], [0, 1])
    """
    if z >= 1 or len(c) <= 2:
        return c
    c = c.best_first()
    bends = np.abs(np.diff(soft_max(c.scores), 2))
    whole = total(bends)
    parts = bends / whole if whole > 1e-6 else np.full_like(bends, 1 / len(bends))
    beyond = np.flatnonzero(np.cumsum(parts) > z + _SLACK)
    beyond = beyond[beyond >= max(min_keep, 1)]
    return c[: int(beyond[0])] if len(beyond) else c


def typical(c: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the tokens whose surprise is nearest to the expected one, up to probability `p`.

    Locally typical sampling (Meister et al. 2022): surprise is -log p(token), expected is the
    entropy.

    >>> c = Candidates(np.arange(4), log(np.array([0.5, 0.3, 0.15, 0.05])))
    >>> typical(c, 0.2).ids.tolist()  # neither the most nor the least probable
    [1]
    """
    if p >= 1:
        return c
    c = c.best_first()
    probabilities = soft_max(c.scores)
    surprise = np.full_like(probabilities, np.inf)
    is_possible = probabilities > 0
    surprise[is_possible] = -log(probabilities[is_possible])
    order = np.argsort(np.abs(surprise - entropy(probabilities)), kind="stable")
    beyond = np.flatnonzero(np.cumsum(probabilities[order]) > p + _SLACK)
    count = int(beyond[0]) + 1 if len(beyond) else len(c)
    return c[np.sort(order[: max(count, min_keep)])]


def top_p(c: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the fewest of the best whose probabilities add up to `p` (Holtzman et al. 2019).

    >>> c = Candidates(np.arange(4), log(np.array([0.5, 0.3, 0.15, 0.05])))
    >>> top_p(c, 0.7).ids.tolist()
    [0, 1]
    """
    if p >= 1:
        return c
    chances, k, order = soft_max(c.scores), 0, np.arange(len(c))
    count = len(c) + 1
    while k < min(count, len(c)):  # mostly once: to sort all takes longer than all the rest
        k = min(max(8 * k, _FEW), len(c))
        if not c.is_sorted:
            order = places_of_best(c.scores, k)
            order = order[np.argsort(-c.scores[order], kind="stable")]
        sums = np.cumsum(chances[order])
        count = max(int(np.searchsorted(sums, p - _SLACK)) + 1, min_keep)
    return replace(c[order[:count]], is_sorted=True)


def min_p(c: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the tokens at least `p` times as probable as the best one.

    >>> c = Candidates(np.arange(4), log(np.array([0.5, 0.3, 0.15, 0.05])))
    >>> min_p(c, 0.25).ids.tolist()
    [0, 1, 2]
    """
    if p <= 0:
        return c
    least = c.scores.max() + log_of(p)
    is_kept = c.scores >= least
    if np.count_nonzero(is_kept) < min_keep:
        return c.best_first()[:min_keep]
    return c[np.flatnonzero(is_kept)]


def top_n_sigma(c: Candidates, n: float) -> Candidates:
    """Keep the scores within `n` standard deviations of the best one; n <= 0 keeps all.

    >>> top_n_sigma(Candidates(np.arange(3), np.array([5.0, 4.0, 0.0])), 1.0).ids.tolist()
    [0, 1]
    """
    if n <= 0 or len(c) < 2:
        return c
    some = c.scores[c.scores > -np.inf]
    offsets = some - total(some) / len(some)
    sigma = math.sqrt(total(offsets * offsets) / len(some))  # rounded right everywhere, unlike pow
    return c[np.flatnonzero(c.scores >= c.scores.max() - n * sigma)]


def exclude_top(c: Candidates, threshold: float, min_keep: int = 0) -> Candidates:
    """XTC: of the tokens with probability `threshold` or more, keep only the least probable.

    Those below it stay.

    >>> c = Candidates(np.arange(4), log(np.array([0.5, 0.3, 0.15, 0.05])))
    >>> exclude_top(c, 0.25).ids.tolist()
    [1, 2, 3]
    """
    if threshold > 0.5 or len(c) < 2:
        return c
    c = c.best_first()
    first = int(np.count_nonzero(soft_max(c.scores) >= threshold)) - 1
    if first <= 0 or len(c) - first < min_keep:
        return c
    return c[first:]


def temperature(c: Candidates, temp: float, span: float = 0.0, exponent: float = 1.0) -> Candidates:
    """Divide the scores by the temperature; at 0 or below only the best token stays.

    With `span` > 0 the temperature moves within [temp - span, temp + span] with the entropy: its
    share of the greatest possible one, to the power `exponent`, says how far up.

    >>> c = Candidates(np.arange(2), np.array([1.0, 3.0]))
    >>> temperature(c, 2.0).scores.tolist(), temperature(c, 0.0).ids.tolist()
    ([0.5, 1.5], [1])
    """
    if span > 0 and len(c) > 1:
        share = min(max(entropy(soft_max(c.scores)) / log_of(len(c)), 0.0), 1.0)
        least = max(0.0, temp - span)
        temp = least + (temp + span - least) * power(share, exponent)
    if temp <= 0:
        best = int(np.argmax(c.scores))
        return c[np.array([best])]
    return replace(c, scores=c.scores / temp)


def mirostat_cut(c: Candidates, mu: float, n_vocab: int, m: int = 100) -> Candidates:
    """Mirostat 1: the best k tokens, whose expected surprise is `mu` bits (Basu et al. 2020).

    k follows from the exponent s of Zipf's law, fitted to the `m` best scores.

    >>> c = Candidates(np.arange(100), -log(np.arange(1, 101)))  # s = 1
    >>> [len(mirostat_cut(c, mu, 100)) for mu in (4.0, 5.0, 6.0)]
    [3, 6, 13]
    """
    c = c.best_first()
    if len(c) < 2:
        return c
    ranks = np.arange(1, min(m, len(c)), dtype=np.float64)
    steps = log((ranks + 1) / ranks)
    falls = -np.diff(c.scores[: len(ranks) + 1])
    falls = falls[np.isfinite(falls)]
    steps = steps[: len(falls)]
    s = total(steps * falls) / total(steps * steps) if len(falls) else 0.0
    if s <= 0:  # all scores are equal: no law to fit
        return c
    excess = s - 1
    # excess / (1 - n^-excess), whose limit at excess = 0 is 1 / log(n)
    log_n = log_of(n_vocab)
    factor = 1 / log_n if abs(excess) < 1e-9 else excess / (1 - float(exp(-excess * log_n)))
    log_k = (log_of(factor) + mu * LN2) / s
    return c[: max(1, int(exp(min(log_k, log_of(len(c))) + _SLACK)))]


def mirostat_2_cut(c: Candidates, mu: float) -> Candidates:
    """Mirostat 2: the tokens whose surprise is at most `mu` bits, and the best one always.

    >>> c = Candidates(np.arange(4), log(np.array([0.5, 0.3, 0.15, 0.05])))
    >>> mirostat_2_cut(c, 2.0).ids.tolist()  # of probability 1/4 and more
    [0, 1]
    """
    c = c.best_first()
    least = float(exp(-max(mu, 0.0) * LN2))
    return c[: max(1, int(np.count_nonzero(soft_max(c.scores) >= least * (1 - _SLACK))))]
