"""Training a LLaMA from scratch on a text: ggml's train-text-from-scratch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yupana.graphlib.errors import SettingError
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama
from yupana.models.llama_gguf import llama_metadata, save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.models.vocabulary_gguf import Words, read_words, vocabulary_metadata
from yupana.train.checkpoint import MODEL, Checkpoint, Progress, save_checkpoint
from yupana.train.conversation import read_template, template_entries, with_template
from yupana.train.course import course_entries, keep_course, keep_sizes
from yupana.train.files import RunFiles
from yupana.train.loop import History
from yupana.train.places import Places, check_apart
from yupana.train.progress import Display
from yupana.train.record import make_record
from yupana.train.run import Run, fit_step, load_data, make_run, order_seed
from yupana.train.samples import read_texts
from yupana.train.settings import RunSettings
from yupana.train.writing import make_writing

_VOCABULARY_TEXT = 1 << 25  # characters that a bpe vocabulary is learned from


@dataclass(frozen=True)
class Pretraining(Run):
    """A run that trains a model from scratch."""

    model: Llama
    vocabulary: Words

    def record(self) -> dict[str, Any]:
        """What the log says of the run."""
        model = self.model
        return make_record(self, "pretrain", model.config, model.n_parameters)


def make_vocabulary(source: str | Path, settings: RunSettings) -> Vocabulary:
    """A vocabulary of the kind that the settings ask for.

    Args:
        source: a text, or the file of training data; conversations in it are read as their template
            writes them.
    Raises:
        DataError: the text is empty. SettingError: as `Vocabulary.train`.

    >>> make_vocabulary("a llama", RunSettings(vocab="characters")).kind
    'characters'
    """
    if settings.vocab == "bytes":
        return Vocabulary.from_bytes()
    template = read_template(settings.chat_template, {})
    texts = [source] if isinstance(source, str) else read_texts(source, template)
    if settings.vocab == "characters":
        return Vocabulary.from_characters("".join(sorted(set().union(*texts))))
    parts, size = [], 0
    for text in texts:
        parts.append(text[: _VOCABULARY_TEXT - size])
        size += len(parts[-1])
        if size == _VOCABULARY_TEXT:
            break
    return Vocabulary.train("".join(parts), settings.n_vocab)


def _vocabulary(source: str | Path, settings: RunSettings) -> tuple[Words, dict[str, Any]]:
    """The vocabulary of a new run, and its entries in files."""
    if settings.vocab_model is not None:
        with GgufFile(settings.vocab_model) as file:
            return read_words(file.metadata)
    vocabulary = make_vocabulary(source, settings)
    return vocabulary, vocabulary_metadata(vocabulary)


def _check_is_text(source: str | Path) -> None:
    """Refuse a text that is the name of a file: a path is meant.

    Raises:
        SettingError: it is.
    """
    if isinstance(source, str) and len(source) < 4096 and "\n" not in source:
        is_file = False
        with contextlib.suppress(OSError, ValueError):  # no name at all
            is_file = Path(source).is_file()
        if is_file:
            raise SettingError(
                f"prepare: source: got the text {source!r}, which is the name of a file; want the "
                f"text itself, or Path({source!r}) to read the file."
            )


def prepare(
    source: str | Path, settings: RunSettings, display: Display | None = None
) -> Pretraining:
    """Make vocabulary, data, model and step; nothing is trained or written yet.

    Args:
        source: a text (str), or the file of training data (Path).
    Raises:
        YupanaError: settings out of range, data that cannot be used, a checkpoint that does not
            fit.

    >>> sizes = {"layer": 1, "embd": 16, "ff": 24, "head": 2, "ctx": 8, "batch": 2, "threads": 1}
    >>> run = prepare("a llama, a ñandú " * 20, RunSettings(vocab="characters", warmup=0, **sizes))
    >>> run.data.training.n_tokens, run.model.config.n_vocab
    (306, 10)
    """
    _check_is_text(source)
    template_file, settings = settings.chat_template_file, with_template(settings)
    start = None if settings.checkpoint_in is None else Checkpoint(settings.checkpoint_in, MODEL)
    if start is not None:
        config, vocabulary, words = start.read_model()
        settings = keep_course(keep_sizes(settings, config, start), start)
    settings.check()
    settings = settings.seeded()
    places = Places(settings, settings.model_out, "model")
    places.check(
        train_data=None if isinstance(source, str) else source,
        vocab_model=settings.vocab_model,
        chat_template_file=template_file,
    )
    if start is None:
        vocabulary, words = _vocabulary(source, settings)
        config = settings.config(len(vocabulary))
    words |= template_entries(settings.chat_template)
    template = read_template(None, words, vocabulary)
    seed = order_seed(settings, start)
    data = load_data(source, vocabulary, settings, config.n_ctx, seed, template)
    model = Llama(config)
    step = fit_step(model, settings, data.training.is_packed)

    entries = llama_metadata(config) | words | course_entries(settings)

    def save(path: Path, history: History) -> None:
        save_llama(path, model, words)

    def save_state(path: Path, history: History) -> None:
        progress = Progress(history.step, history.best, data.hash, seed, history.stop, history.rows)
        save_checkpoint(path, MODEL, entries, model.weights, step, progress)

    files = RunFiles(places, save, save_state)
    if start is None:
        model.init(settings.seed)
    writing = make_writing(settings, model, vocabulary, data, settings.seed, settings.n_threads)
    run = make_run(
        settings, step, data, seed, files, model.weights, start, display, writing=writing
    )
    return Pretraining(**vars(run), model=model, vocabulary=vocabulary)


def write_model(settings: RunSettings) -> Path:
    """Write the model of a checkpoint, ours or one of ggml's, without training; returns its path.

    Raises:
        YupanaError: no checkpoint is given, or it cannot be used. OSError: the system cannot write.
    """
    if settings.checkpoint_in is None:
        raise SettingError(
            "pretrain: only_write_model: got no checkpoint_in, want the checkpoint to write."
        )
    read = {"checkpoint_in": settings.checkpoint_in}
    if settings.chat_template_file is not None:
        read["chat_template_file"] = settings.chat_template_file
    check_apart(settings.model_out, "model_out", read)
    start = Checkpoint(settings.checkpoint_in, MODEL)
    config, _, words = start.read_model()
    words |= template_entries(with_template(settings).chat_template)
    model = Llama(config)
    start.restore(model.weights, None)
    out, step = settings.model_out, str(start.progress.step)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(out.name.replace(settings.pattern_fn_it, step))
    save_llama(path, model, words)
    return path
