"""Perplexity of a model on a text, as llama.cpp's `perplexity` computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.session import Session


@dataclass(frozen=True)
class Estimate:
    """What is known after some chunks.

    Attributes:
        chunk: how many chunks were read.
        tokens: how many tokens were counted.
        mean: mean negative log-likelihood of a token, in nats.
        perplexity: exp(mean).
        error: standard error of `perplexity`; NaN for less than two tokens.
    """

    chunk: int
    tokens: int
    mean: float
    perplexity: float
    error: float


def perplexity(
    session: Session,
    ids: Sequence[int],
    n_ctx: int,
    bos: int | None = None,
    chunks: int = -1,
) -> Iterator[Estimate]:
    """Read a text chunk by chunk, each from an empty context.

    Of a chunk of `n_ctx` tokens, those behind its first half and the token after it count, so
    that each is seen with at least half a context before it. What is left at the end of the text
    is not read.

    Args:
        ids: the whole text.
        bos: takes the place of the first token of each chunk; None: nothing does.
        chunks: how many are read at most; -1: all.
    Yields:
        an estimate after each chunk, from this and those before.
    Raises:
        DataError: the text is shorter than two chunks.
        SettingError: `n_ctx` is below 4 or beyond the session's, or `chunks` is 0.

    >>> from yupana.models.llama import Llama, LlamaConfig
    >>> model = Llama(LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2)).init(seed=1)
    >>> *_, last = perplexity(Session(model), [1, 2, 3, 4] * 6, n_ctx=8)
    >>> last.chunk, last.tokens, last.perplexity > 1
    (3, 9, True)
    """
    if not 4 <= n_ctx <= session.n_ctx:
        raise SettingError(f"perplexity: n_ctx: got {n_ctx}, want 4 to {session.n_ctx}.")
    if chunks == 0 or chunks < -1:
        raise SettingError(f"perplexity: chunks: got {chunks}, want at least 1, or -1 for all.")
    if len(ids) < 2 * n_ctx:
        raise DataError(
            f"perplexity: the text is too short: got {len(ids)} tokens, want at least {2 * n_ctx}, "
            f"twice the context of {n_ctx}. Pass a longer text or a smaller context."
        )
    count = len(ids) // n_ctx
    return _estimates(session, ids, n_ctx, bos, count if chunks < 0 else min(chunks, count))


def _estimates(
    session: Session, ids: Sequence[int], n_ctx: int, bos: int | None, chunks: int
) -> Iterator[Estimate]:
    first = n_ctx // 2
    tokens, sum_of_losses, sum_of_squares = 0, 0.0, 0.0
    for chunk in range(chunks):
        inputs = list(ids[chunk * n_ctx : (chunk + 1) * n_ctx])
        targets = np.array(inputs[first + 1 :])
        if bos is not None:
            inputs[0] = bos
        losses = _losses(_scores(session, inputs, first), targets)
        tokens += len(losses)
        sum_of_losses += float(losses.sum())
        sum_of_squares += float((losses * losses).sum())
        mean = sum_of_losses / tokens
        value = float(np.exp(mean))
        variance = max(sum_of_squares / tokens - mean * mean, 0.0)
        error = value * (variance / (tokens - 1)) ** 0.5 if tokens > 1 else float("nan")
        yield Estimate(chunk + 1, tokens, mean, value, error)


def _scores(session: Session, inputs: list[int], first: int) -> NDArray[np.float32]:
    """Scores of what follows each token from place `first` on but the last, (n, V)."""
    session.truncate(0)
    session.eval(inputs[:first])
    return session.eval_all(inputs[first:-1])


def _losses(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p(target) of each row."""
    rows = scores.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(targets)), targets]
    losses: NDArray[np.float64] = np.log(np.exp(rows).sum(axis=1)) - chosen
    return losses
