"""A model with its tokenizer: text in, text out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.arguments import check_kinds
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.adapter_files import load_adapter
from yupana.models.decoder import Decoder
from yupana.models.formats import GgufFile, Metadata, Progress
from yupana.models.formats.identify import identify
from yupana.models.grammar import Grammar
from yupana.models.json_schema import schema_grammar
from yupana.models.loading import load_model
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.session import Session
from yupana.models.session_settings import SessionSettings, check_names
from yupana.models.stop_texts import StopTexts
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

    def __init__(self, model: Decoder, file: GgufFile, **settings: Unpack[SessionSettings]) -> None:
        self.model = model
        self._file = file
        check_kinds("load", Session.__init__.__annotations__, settings)
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

    def session(self, **settings: Unpack[SessionSettings]) -> Session:
        """A cache and programs of its own; the settings are those of `Session`.

        Raises:
            SettingError: one is out of range. UnknownSettingError: there is none of this name.
        """
        check_names("session", settings)
        return Session(self.model, **(self._settings | settings))

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

    def set_scale(self, adapter: str | PathLike[str], scale: float) -> None:
        """Use an attached adapter, named by its path, with another scale from now on.

        Raises:
            SettingError: it is not attached, or the scale is no number.
        """
        check_kinds("set_scale", LanguageModel.set_scale.__annotations__, {"scale": scale})
        self.model.set_scale(str(Path(adapter)), scale)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Scores of what follows each id, (n, V), read from an empty context.

        Raises:
            SettingError: no ids, one outside the vocabulary, or more than the context holds.
        """
        with self._borrowed() as session:
            return session.eval_all(ids)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 128,
        sampling: Sampling = _DEFAULT,
        seed: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        grammar: str | Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Iterator[str]:
        """The continuation of `prompt`, in pieces of whole characters as they come.

        Ends at an end token of the vocabulary, before a text of `stop`, or after `max_tokens`. When
        the context is full half of it is dropped, but for the token that begins every text; a model
        with learned positions ends there.

        Args:
            prompt: text to go on from, or its token ids, to which nothing is added.
            max_tokens: tokens to add at most.
            sampling: how they are drawn.
            seed: the same one gives the same text.
            logit_bias: id to a number that is added to the token's score; -inf forbids it.
            grammar: what the continuation follows: GBNF, see `Grammar`, or a JSON schema as a
                mapping, see `schema_grammar`.
            stop: text, or texts, that the continuation ends before; letters that may begin one
                come when it is clear that they do not.
            ignore_eos: forbid the tokens that end a text.

        Raises:
            SettingError: an argument of another kind, `max_tokens` or `seed` negative, an id or a
                biased token that is none, or an empty text to stop at.
            DataError: `grammar` is none.
        """
        kinds = LanguageModel.generate.__annotations__
        given = {"max_tokens": max_tokens, "seed": seed, "ignore_eos": ignore_eos}
        check_kinds("generate", kinds, given)
        if max_tokens < 0:
            raise SettingError(f"generate: max_tokens: got {max_tokens}, want at least 0.")
        if not isinstance(sampling, Sampling):
            raise SettingError(f"generate: sampling: got {sampling!r}, want a yupana.Sampling.")
        bias = dict(logit_bias or {})
        if ignore_eos:
            bias |= dict.fromkeys(self.tokenizer.ends, -np.inf)
        if isinstance(grammar, Mapping):
            grammar = schema_grammar(grammar)
        if not isinstance(grammar, str | None):
            raise SettingError(f"generate: grammar: got {grammar!r}, want a text or a mapping.")
        rules = None if grammar is None else Grammar(grammar)
        writer = partial(
            Writer,
            sampler=Sampler(sampling, self.tokenizer, bias, rules),
            stream=RandomStream(seed),
            keep=int(self.tokenizer.add_bos),
        )
        return self._pieces(self._prompt_ids(prompt), max_tokens, writer, _stop_texts(stop))

    def _prompt_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        n_vocab = self.model.sizes.n_vocab
        try:
            ids = np.asarray(prompt)
        except ValueError:  # rows of several lengths
            ids = np.zeros((0, 0))
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
            raise SettingError(f"generate: prompt: got {prompt!r}, want a text, or token ids.")
        if ids.min() < 0 or ids.max() >= n_vocab:
            raise SettingError(
                f"generate: prompt: got {prompt!r}, want ids from 0 to {n_vocab - 1}."
            )
        return [*map(int, ids)]

    def _pieces(
        self,
        ids: Sequence[int],
        max_tokens: int,
        make_writer: Callable[[Session], Writer],
        stops: StopTexts,
    ) -> Iterator[str]:
        decoder, ends = self.tokenizer.stream(), self.tokenizer.ends
        with self._borrowed() as session:
            writer = make_writer(session)
            writer.read(ids)
            for _ in range(max_tokens):
                token = writer.draw()
                if token is None or token in ends:
                    break
                if piece := stops.feed(decoder.feed(token)):
                    yield piece
                if stops.has_ended:
                    break
        if rest := stops.feed(decoder.close()) + stops.close():
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


def _stop_texts(stop: str | Sequence[str]) -> StopTexts:
    texts = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and text for text in texts):
        raise SettingError(f"generate: stop: got {stop!r}, want texts that are not empty.")
    return StopTexts(texts)


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
    overrides: Mapping[str, bool | int | float | str] | None = None,
    **settings: Unpack[SessionSettings],
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
        overrides: metadata in place of what the file has, as {"llama.rope.freq_base": 1e6}.
        settings: of the sessions it will read with: n_ctx, n_batch, n_seq, cache and threads; see
            `Session`.
    Raises:
        FileFormatError: a file that cannot be read as such. SettingError: an adapter of another
            model, or the same twice; loading options that contradict each other.
            UnknownSettingError: a name that no option and no setting has.
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
    check_names("load", settings, [*inspect.signature(load).parameters][:-1])
    wanted = _with_scales(adapters)
    _expect_gguf(path)
    file = GgufFile(
        path,
        mmap=mmap,
        prefetch=prefetch,
        random_access=random_access,
        mlock=mlock,
        validate=validate,
        progress=progress,
        overrides=overrides,
    )
    model = LanguageModel(load_model(file), file, **settings)
    for adapter, scale in wanted:
        model.attach(adapter, scale)
    return model


def _with_scales(adapters: object) -> list[tuple[str | PathLike[str], float]]:
    """Each adapter and its scale."""
    error = SettingError(
        f"load: adapters: got {adapters!r}, want a list of paths, or of pairs of path and scale."
    )
    if isinstance(adapters, str | PathLike | Mapping) or not isinstance(adapters, Iterable):
        raise error
    pairs: list[tuple[Any, Any]] = [
        (entry[0], entry[1]) if isinstance(entry, tuple | list) and len(entry) == 2 else (entry, 1)
        for entry in adapters
    ]
    if not all(isinstance(path, str | PathLike) for path, _ in pairs):
        raise error
    return pairs


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
