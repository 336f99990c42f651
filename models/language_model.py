"""A model with its tokenizer: text in, text out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.adapter_files import load_adapter
from yupana.models.decoder import Decoder
from yupana.models.formats import GgufFile, Metadata, Progress
from yupana.models.formats.identify import identify
from yupana.models.grammar import Grammar
from yupana.models.loading import load_model
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.session import Session
from yupana.models.tokenizer import Tokenizer, read_tokenizer
from yupana.models.writer import Writer

Adapters = Sequence[str | PathLike[str] | tuple[str | PathLike[str], float]]
_DEFAULT = Sampling()
_FORMATS = {
    "hub": "a folder of Hugging Face's",
    "llama2c": "a file of llama2.c",
    "ggml": "a file of ggml's former programs",
}


class LanguageModel:
    """What `yupana.load` gives.

    Attributes:
        model: weights and graphs, a `Llama` or `StarCoder`.
        tokenizer: of the file.

    Args:
        file: stays open; the vocabulary is read when it is asked for.
        settings: of sessions, unless these are given others.
    """

    def __init__(self, model: Decoder, file: GgufFile, **settings: Any) -> None:
        self.model = model
        self._file = file
        inspect.signature(Session).bind(model, **settings)  # a wrong name is told of here
        self._settings = settings
        self._idle: list[Session] = []

    @property
    def metadata(self) -> Metadata:
        """Entries of the file."""
        return self._file.metadata

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back; FileFormatError if the file has no vocabulary."""
        return read_tokenizer(self._file.metadata)

    def session(self, **settings: Any) -> Session:
        """A cache and programs of its own; the settings are those of `Session`."""
        return Session(self.model, **{**self._settings, **settings})

    def attach(self, adapter: str | PathLike[str], scale: float = 1.0) -> None:
        """Use a LoRA adapter from now on, beside others; see `load`.

        Raises:
            FileFormatError: the file holds no adapter.
            SettingError: it is for another model, or attached already.
        """
        self.model.attach(load_adapter(adapter, self.model.sizes), scale)

    def detach(self, adapter: str | PathLike[str]) -> None:
        """Go on without an adapter, named by its path.

        Raises:
            SettingError: it is not attached.
        """
        self.model.detach(str(Path(adapter)))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Scores of what follows each id, (n, V), read from an empty context.

        Raises:
            SettingError: no ids, one outside the vocabulary, or more than the context holds.
        """
        with self._borrowed() as session:
            return session.eval_all(ids)

    def generate(
        self,
        prompt: str,
        max_tokens: int = 128,
        sampling: Sampling = _DEFAULT,
        seed: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        grammar: str | None = None,
    ) -> Iterator[str]:
        """The continuation of `prompt`, in pieces of whole characters as they come.

        Ends at an end token of the vocabulary, or after `max_tokens`. When the context is full
        half of it is dropped, but for the token that begins every text; a model with learned
        positions ends there.

        Args:
            prompt: text to go on from.
            max_tokens: tokens to add at most.
            sampling: how they are drawn.
            seed: the same one gives the same text.
            logit_bias: id to a number that is added to the token's score; -inf forbids it.
            grammar: what the continuation follows, in GBNF; see `Grammar`.

        Raises:
            SettingError: `max_tokens` or `seed` is negative, or a biased token is none.
            DataError: `grammar` is none.
        """
        if max_tokens < 0:
            raise SettingError(f"generate: max_tokens: got {max_tokens}, want at least 0.")
        ids = self.tokenizer.encode(prompt)
        rules = None if grammar is None else Grammar(grammar)
        sampler = Sampler(sampling, self.tokenizer, logit_bias, rules)
        return self._pieces(ids, max_tokens, sampler, RandomStream(seed))

    def _pieces(
        self, ids: Sequence[int], max_tokens: int, sampler: Sampler, stream: RandomStream
    ) -> Iterator[str]:
        decoder, tokenizer = self.tokenizer.stream(), self.tokenizer
        with self._borrowed() as session:
            writer = Writer(session, sampler, stream, keep=int(tokenizer.add_bos))
            writer.read(ids)
            for _ in range(max_tokens):
                token = writer.draw()
                if token is None or token in tokenizer.ends:
                    break
                if piece := decoder.feed(token):
                    yield piece
        if rest := decoder.close():
            yield rest

    @contextmanager
    def _borrowed(self) -> Iterator[Session]:
        """An empty session that nobody uses; its programs are compiled for the next borrower."""
        session = self._idle.pop() if self._idle else self.session()
        session.truncate(0)
        try:
            yield session
        finally:
            self._idle.append(session)


def load(
    path: str | PathLike[str],
    adapters: Adapters = (),
    *,
    mmap: bool = True,
    prefetch: bool = False,
    random_access: bool = False,
    mlock: bool = False,
    validate: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> LanguageModel:
    """Open a model file for inference; its weights stay in the mapped file.

    Args:
        path: GGUF file of a LLaMA or StarCoder model, of any type.
        adapters: LoRA adapters that are used with it: files (GGUF, ggla) or folders of PEFT, or
            pairs of one and a scale.
        mmap: False reads the weights into memory of their own, which no other process shares.
        prefetch: ask the system to load the whole file now instead of when it is used.
        random_access: ask it to load only pages that are touched, and none ahead.
        mlock: keep the weights in memory; a limit that is too low is warned of.
        validate: refuse weights, or scales of quantised ones, that are not finite.
        progress: called with the part (0 to 1) of the weights that is there, after each tensor;
            returning False cancels.
        settings: of the sessions it will read with, such as n_ctx, cache and threads; see
            `Session`.
    Raises:
        FileFormatError: a file that cannot be read as such. SettingError: an adapter of another
            model, or the same twice; loading options that contradict each other.
        Interrupted: `progress` returned False. OSError: the system cannot read.

    >>> import tempfile, pathlib
    >>> from yupana.models.llama import Llama, LlamaConfig
    >>> from yupana.models.llama_gguf import save_llama
    >>> from yupana.models.vocabulary import Vocabulary
    >>> vocabulary = Vocabulary.from_bytes()
    >>> sizes = LlamaConfig(len(vocabulary), n_ctx=16, n_embd=8, n_layer=1, n_head=2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.gguf"
    >>> save_llama(path, Llama(sizes).init(seed=1), vocabulary)
    >>> model = load(path)
    >>> ids = model.tokenizer.encode("Once upon")
    >>> len(ids), model.logits(ids).shape
    (9, (9, 257))
    >>> len("".join(model.generate("Once upon", max_tokens=20))) <= 20
    True
    """
    _expect_gguf(path)
    file = GgufFile(
        path,
        mmap=mmap,
        prefetch=prefetch,
        random_access=random_access,
        mlock=mlock,
        validate=validate,
        progress=progress,
    )
    model = LanguageModel(load_model(file), file, **settings)
    for entry in adapters:
        model.attach(*(entry if isinstance(entry, tuple) else (entry,)))
    return model


def _expect_gguf(path: str | PathLike[str]) -> None:
    """Raise for a model of another format, which `yupana convert` makes a GGUF file of."""
    try:
        kind = identify(path)
    except FileFormatError:
        return  # the reader says what is wrong
    if kind in _FORMATS:
        raise FileFormatError(
            f"{path}: not a GGUF file: got {_FORMATS[kind]}, want one. Make it with `yupana "
            f"convert {path} model.gguf`."
        )
