"""Texts that a model writes while it is trained, so that one sees how it learns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from yupana.graphlib.errors import NonFiniteError, SettingError
from yupana.models.decoder import Decoder
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.session import Session
from yupana.models.tokenizer_base import Tokenizer
from yupana.models.vocabulary import Vocabulary
from yupana.models.writer import Writer
from yupana.train.corpus import Codec
from yupana.train.data import Data

Recording = Callable[[], AbstractContextManager[object]]

_FEW = 8  # tokens that a text begins with where the data have no prompts


@dataclass(frozen=True, kw_only=True)
class WritingSettings:
    """Texts that the model writes to the log while it is trained."""

    # Steps between two texts that the model writes to the log; 0: none. What is learned does not
    # depend on them.
    generate_every: int = 100
    # What they go on from; by default what the data kept for validation begin with.
    generate_prompt: str | None = None
    # Tokens of each.
    generate_tokens: int = 64

    def check_writing(self) -> None:
        """Raise SettingError for a number out of range."""
        for name, least in (("generate_every", 0), ("generate_tokens", 1)):
            if getattr(self, name) < least:
                raise SettingError(
                    f"train: {name} is out of range: got {getattr(self, name)}, want at least "
                    f"{least}."
                )


class Writing:
    """Lets a model write, each time from the same prompt and with the same draws.

    Differences between two texts so come from what the model learned between them. The draws
    have a random stream of their own.

    Args:
        model: its weights are read as they are at the time.
        words: its vocabulary.
        prompt: ids that the texts go on from, at least one.
        n_tokens: that are added, at most.
        seed: of the draws.
        threads: as for `Graph.compile`.
        recording: makes what graphs are recorded within, as `TrainedAdapter.without_dropout`.

    >>> from yupana.models.llama import Llama, LlamaConfig
    >>> words = Vocabulary.from_characters("abc")
    >>> model = Llama(LlamaConfig(n_vocab=4, n_ctx=8, n_embd=8, n_layer=1, n_head=2)).init(seed=1)
    >>> writing = Writing(model, words, [0, 1], n_tokens=5, seed=3)
    >>> prompt, text = writing.text()
    >>> prompt, set(text) <= set("abc"), writing.text() == (prompt, text)
    ('ab', True, True)
    """

    def __init__(
        self,
        model: Decoder,
        words: Vocabulary | Tokenizer,
        prompt: list[int],
        n_tokens: int,
        seed: int,
        threads: int | None = None,
        recording: Recording = nullcontext,
    ) -> None:
        self._model, self._words, self._prompt = model, words, prompt
        self._n_tokens, self._seed, self._threads = n_tokens, seed, threads
        self._recording = recording
        self._ends = {words.end} if isinstance(words, Vocabulary) else words.ends

    @cached_property
    def _session(self) -> Session:
        """Made when the first text is wanted, with the kernels that `yupana generate` takes."""
        return Session(self._model, threads=self._threads)

    def text(self) -> tuple[str, str]:
        """The prompt, and what the model adds to it.

        It ends early at an end token, or where scores are not finite.
        """
        with self._recording():
            ids = self._write()
        return self._decode(self._prompt), self._decode(ids)

    def _write(self) -> list[int]:
        self._session.truncate(0)
        writer = Writer(self._session, Sampler(Sampling()), RandomStream(self._seed))
        writer.read(self._prompt)
        ids: list[int] = []
        try:
            while len(ids) < self._n_tokens:
                token = writer.draw()
                if token is None or token in self._ends:
                    break
                ids.append(token)
        except NonFiniteError:  # whether training can go on is for the loop to say
            pass
        return ids

    def _decode(self, ids: list[int]) -> str:
        if isinstance(self._words, Vocabulary):
            return self._words.decode(ids)
        return self._words.decode(ids, special=True)


def make_writing(
    settings: WritingSettings,
    model: Decoder,
    words: Vocabulary | Tokenizer,
    data: Data,
    seed: int,
    threads: int | None = None,
    recording: Recording = nullcontext,
) -> Writing | None:
    """What writes the texts of a run; None where none are wanted.

    Raises:
        DataError: the prompt has a character that the vocabulary lacks.
    """
    if not settings.generate_every:
        return None
    if settings.generate_prompt:
        codec = Codec.of(words)
        ids = np.asarray(codec.encode(settings.generate_prompt, True)).tolist()
        prompt = ids if codec.bos is None else [codec.bos, *ids]
    else:
        prompt = _first_prompt(data)
    prompt = prompt[: max(1, model.sizes.n_ctx // 2)]
    return Writing(model, words, prompt, settings.generate_tokens, seed, threads, recording)


def _first_prompt(data: Data) -> list[int]:
    """What stands before the first answer of the data; without answers, the first few tokens."""
    rows = data.validation or data.training
    ids = rows.segments(0)[0]
    n_given = 1 + int(np.argmax(ids[1:] >= 0))  # BOS before them counts as learned
    prompt: list[int] = (ids ^ (ids >> 31))[: n_given if n_given > 1 else _FEW].tolist()
    return prompt
