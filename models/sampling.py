"""Choosing the next token from the model's scores, with the chain of samplers of llama.cpp."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yupana.graphlib.errors import NonFiniteError, SettingError
from yupana.models import sampling_steps as steps
from yupana.models.grammar import Grammar
from yupana.models.grammar_filter import GrammarFilter
from yupana.models.sampling_adaptive import AdaptiveP
from yupana.models.sampling_math import LN2, Floats, best_first, log, prepare, soft_max
from yupana.models.sampling_penalties import dry, find_breakers, penalties
from yupana.models.sampling_settings import Sampling
from yupana.models.sampling_steps import Candidates, Ids
from yupana.models.tokenizer_base import Tokenizer

__all__ = ["RandomStream", "Sampler", "Sampling"]


class RandomStream:
    """Uniform numbers that are the same for a seed in every version of NumPy.

    Raises:
        SettingError: a seed below 0.

    >>> stream = RandomStream(7)
    >>> 0.0 <= stream.uniform() < 1.0, RandomStream(7).uniform() == RandomStream(7).uniform()
    (True, True)
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise SettingError(f"sampling: seed is negative: got {seed}, want at least 0.")
        self._bits = np.random.Philox(key=seed)

    def uniform(self) -> float:
        """The next number in [0, 1), with 53 random bits."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53


_FEW = 100  # of the best, which one loop finds faster than steps in NumPy
_Step: TypeAlias = Callable[[Candidates, RandomStream], Candidates]


class Sampler:
    """Draws tokens; remembers the last ones for its penalties.

    Args:
        settings: which samplers, and how.
        tokenizer: of the model; needed for `penalize_nl` and where repetitions end for DRY.
        logit_bias: id to a number that is added to the score of this token always; -inf
            forbids it.
        grammar: what is drawn follows it, and begins it anew behind what is given. As in
            llama.cpp the chain comes first; only where the token it gives does not fit, it draws
            again from those that do.
    Raises:
        SettingError: a bias for what is no id, or of +inf or NaN; a grammar without a tokenizer.

    >>> sampler = Sampler(Sampling(temp=0, repeat_penalty=2.0))
    >>> stream, drawn = RandomStream(0), []
    >>> for _ in range(3):
    ...     drawn.append(sampler.pick([0.0, 1.5, 2.0], stream))
    ...     sampler.accept(drawn[-1])
    >>> drawn
    [2, 1, 2]
    """

    def __init__(
        self,
        settings: Sampling | None = None,
        tokenizer: Tokenizer | None = None,
        logit_bias: Mapping[int, float] | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        self.settings = s = settings or Sampling()
        if grammar is not None and tokenizer is None:
            raise SettingError("sampling: grammar: got no tokenizer, want the model's.")
        self._filter = GrammarFilter(grammar, tokenizer) if grammar and tokenizer else None
        self._drawn: int | None = None  # and not yet accepted
        bias = logit_bias or {}
        self._biased = np.array([*bias.keys()], np.int64), np.array([*bias.values()], np.float64)
        if len(bias) and not (self._biased[0].min() >= 0 and (self._biased[1] < np.inf).all()):
            raise SettingError(
                f"sampling: logit_bias: got {dict(bias)}, want ids from 0 and numbers or -inf."
            )
        if tokenizer is not None:
            self._check_biases(len(tokenizer))
        self._newline: list[int] = []
        if tokenizer is not None and not s.penalize_nl:
            self._newline = tokenizer.encode("\n", add_special=False)[-1:]
        self._breakers = {}
        if tokenizer is not None and s.dry_multiplier > 0:
            self._breakers = find_breakers(s.dry_sequence_breaker, tokenizer)
        back = (s.repeat_last_n, s.dry_penalty_last_n if s.dry_multiplier > 0 else 0)
        self._recent: deque[int] = deque(maxlen=None if min(back) < 0 else max(back))
        prepare()
        self._mu = 2 * s.mirostat_ent
        self._adaptive: AdaptiveP | None = None
        if s.adaptive_target >= 0 and not s.mirostat and "adaptive_p" in s.names:
            self._adaptive = AdaptiveP(s.adaptive_target, s.adaptive_decay)
        chain = self._make_chain()
        self._chain = [step for _, step in chain]
        # How many of the best the chain begins with, whatever the others are; 0: with all.
        self._n_best = 0
        if not len(bias) and not s.mirostat:
            names = [name for name, _ in chain]
            only_best = self._is_greedy and names == ["temperature"]
            self._n_best = 1 if only_best else s.top_k if names[:1] == ["top_k"] else 0

    def pick(self, logits: ArrayLike, stream: RandomStream) -> int:
        """Draw one token.

        Args:
            logits: (V,) scores; equal ones are taken in order of id.
            stream: one number of it is taken for the token, and one by XTC where that is on.

        Raises:
            NonFiniteError: a score is NaN or infinity, or none is left.
            SettingError: a biased token is not among the V.
        """
        token, place = self._draw(logits, stream)
        if self._filter is not None:
            if not self._filter.allows(token):
                token, place = self._draw(logits, stream, self._filter.allowed())
            self._filter.accept(token)
            self._drawn = token
        if self._adaptive is not None:  # draws that the grammar refused do not count
            self._adaptive.drawn(place)
        return token

    def _draw(
        self, logits: ArrayLike, stream: RandomStream, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[int, int]:
        """A token, and its place among those that could have been drawn."""
        ids, chances = self._chances(logits, stream, allowed)
        number = stream.uniform()
        if len(ids) == 1:
            at = 0
        else:
            sums = np.cumsum(chances)
            at = min(int(np.searchsorted(sums, number * sums[-1], side="right")), len(ids) - 1)
        if self.settings.mirostat:
            surprise = -float(log(chances[at])) / LN2
            self._mu -= self.settings.mirostat_lr * (surprise - self.settings.mirostat_ent)
        return int(ids[at]), at

    def probabilities(self, logits: ArrayLike, stream: RandomStream) -> tuple[Ids, Floats]:
        """The tokens that may come next, and the probability of each.

        Args:
            logits, stream: as for `pick`; only XTC takes a number of the stream.

        >>> sampler = Sampler(Sampling(temp=1, top_k=2))
        >>> ids, chances = sampler.probabilities([0.0, 1.0, 1.0], RandomStream(0))
        >>> ids.tolist(), chances.tolist()
        ([1, 2], [0.5, 0.5])
        """
        allowed = None if self._filter is None else self._filter.allowed()
        return self._chances(logits, stream, allowed)

    def _chances(
        self, logits: ArrayLike, stream: RandomStream, allowed: NDArray[np.bool_] | None
    ) -> tuple[Ids, Floats]:
        c = self._start(logits, self._n_best if allowed is None else 0)
        n_vocab = len(c)
        if allowed is not None:
            c = c[np.flatnonzero(allowed[:n_vocab])]
        for step in self._chain:
            c = step(c, stream)
        if self.settings.mirostat == 1:
            c = steps.mirostat_cut(c, self._mu, n_vocab)
        elif self.settings.mirostat == 2:
            c = steps.mirostat_2_cut(c, self._mu)
        elif self._adaptive is not None:
            c = self._adaptive.bend(c)
        return c.ids, soft_max(c.scores)

    def accept(self, token: int) -> None:
        """Remember a token of the text, drawn or given."""
        self._recent.append(token)
        if self._filter is not None and token != self._drawn:
            self._filter.reset()
        self._drawn = None

    def reset(self) -> None:
        """Forget the text."""
        self._recent.clear()
        if self._filter is not None:
            self._filter.reset()
        self._mu = 2 * self.settings.mirostat_ent
        if self._adaptive is not None:
            self._adaptive.reset()

    def _start(self, logits: ArrayLike, k: int) -> Candidates:
        """All tokens, or at least the `k` > 0 best ones."""
        scores = np.asarray(logits)
        tokens, bias = self._biased
        if len(tokens):
            self._check_biases(len(scores))
            scores = scores.astype(np.float64)
            scores[tokens] += bias
        if 0 < k <= _FEW and k < len(scores) and scores.dtype == np.float32:
            places, is_odd = best_first(np.ascontiguousarray(scores), k)
            c = Candidates(places, scores[places].astype(np.float64), is_sorted=True)
            best = np.nan if is_odd else c.scores[0]
        else:
            scores = scores.astype(np.float64, copy=False)
            c = Candidates(np.arange(len(scores)), scores, is_whole=True)
            best = scores.max()  # NaN where one is
        if not -np.inf < best < np.inf:
            raise NonFiniteError(
                "sampling: the model's scores are not finite: got NaN or infinity, want numbers. "
                "Its weights are damaged or its training diverged; use an earlier state."
            )
        return c

    def _check_biases(self, n_vocab: int) -> None:
        last = self._biased[0].max(initial=-1)
        if last >= n_vocab:
            raise SettingError(
                f"sampling: logit_bias: got token {last}, want at most {n_vocab - 1}, the last of "
                "the vocabulary."
            )

    def _make_chain(self) -> list[tuple[str, _Step]]:
        """The samplers that do something; where the best token wins, only those that change it."""
        s, keep = self.settings, self.settings.min_keep
        penalised = s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0
        has_penalties = penalised and s.repeat_last_n != 0
        known: dict[str, tuple[bool, _Step]] = {
            "penalties": (has_penalties, lambda c, _: self._penalise(c)),
            "dry": (s.dry_multiplier > 0, lambda c, _: self._dry(c)),
            "top_n_sigma": (s.top_nsigma > 0, lambda c, _: steps.top_n_sigma(c, s.top_nsigma)),
            "top_k": (s.top_k > 0, lambda c, _: steps.top_k(c, s.top_k)),
            "tfs_z": (s.tfs < 1, lambda c, _: steps.tail_free(c, s.tfs, keep)),
            "typ_p": (s.typical < 1, lambda c, _: steps.typical(c, s.typical, keep)),
            "top_p": (s.top_p < 1, lambda c, _: steps.top_p(c, s.top_p, keep)),
            "min_p": (s.min_p > 0, lambda c, _: steps.min_p(c, s.min_p, keep)),
            "xtc": (s.xtc_probability > 0, self._exclude_top),
            "temperature": (True, lambda c, _: self._temper(c)),
            "adaptive_p": (False, lambda c, _: c),  # bends what the chain leaves
        }
        names: Iterable[str] = ["temperature"] if s.mirostat else s.names
        if self._is_greedy and not {"typ_p", "xtc"} & {n for n in s.names if known[n][0]}:
            names = [n for n in names if n in ("penalties", "dry", "temperature")]
        return [(name, known[name][1]) for name in names if known[name][0]]

    @property
    def _is_greedy(self) -> bool:
        s = self.settings
        return s.temp <= 0 and s.dynatemp_range == 0 and (s.mirostat > 0 or "temp" in s.samplers)

    def _penalise(self, c: Candidates) -> Candidates:
        s = self.settings
        return penalties(
            c,
            self._last(s.repeat_last_n),
            s.repeat_penalty,
            s.frequency_penalty,
            s.presence_penalty,
            self._newline,
        )

    def _dry(self, c: Candidates) -> Candidates:
        s = self.settings
        recent = self._last(s.dry_penalty_last_n)
        return dry(c, recent, s.dry_multiplier, s.dry_base, s.dry_allowed_length, self._breakers)

    def _exclude_top(self, c: Candidates, stream: RandomStream) -> Candidates:
        s = self.settings
        if stream.uniform() >= s.xtc_probability:
            return c
        return steps.exclude_top(c, s.xtc_threshold, s.min_keep)

    def _temper(self, c: Candidates) -> Candidates:
        s = self.settings
        if s.mirostat:  # whose temperature is not dynamic
            return steps.temperature(c, s.temp)
        return steps.temperature(c, s.temp, s.dynatemp_range, s.dynatemp_exp)

    def _last(self, n: int) -> list[int]:
        return list(self._recent) if n < 0 else list(self._recent)[max(len(self._recent) - n, 0) :]
