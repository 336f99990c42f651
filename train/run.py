"""What `yupana pretrain` and `yupana finetune` have in common: from data and model to a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yupana.graphlib.budget import Checkpoints, MemoryBudget
from yupana.graphlib.context import Context
from yupana.graphlib.op import Matmul
from yupana.graphlib.tensor import Tensor
from yupana.models.llama import Llama
from yupana.models.tokenizer_base import Tokenizer
from yupana.models.vocabulary import Vocabulary
from yupana.train.bill import Bill, fitting_step, make_bill
from yupana.train.checkpoint import Checkpoint
from yupana.train.corpus import Codec
from yupana.train.course import stored_course
from yupana.train.data import Batch, Batches, Data, even_batch, prepare_data
from yupana.train.files import RunFiles
from yupana.train.lbfgs import LbfgsSettings
from yupana.train.lbfgs_step import LbfgsStep
from yupana.train.log import Log
from yupana.train.loop import History, Loop, LoopSettings, Outcome, read_history
from yupana.train.lora import TrainedAdapter
from yupana.train.memory import available_bytes
from yupana.train.optimiser import OptimiserSettings
from yupana.train.progress import Display, Silent
from yupana.train.samples import Template, read_corpus, text_corpus
from yupana.train.settings import TrainSettings
from yupana.train.shuffle import key_of
from yupana.train.step import Evaluation, Step, TrainingStep
from yupana.train.tensorboard import EventFile
from yupana.train.writing import Writing

_STEPS = 256  # ggml's default


@dataclass(frozen=True)
class Run:
    """A run that is ready to start: the pieces, each to be looked at."""

    settings: TrainSettings
    step: Step
    bill: Bill
    data: Data
    loop: Loop
    files: RunFiles
    limit: str  # the rule that its number of steps comes from

    def train(self) -> Outcome:
        """Train, write everything, and draw the loss curve.

        Raises:
            NonFiniteError, OSError: see `Loop.run`; what was learned before has been written.
        """
        self.files.places.make_folders()
        try:
            outcome = self.loop.run(record=self.record())
            why = "Ctrl-C" if outcome.interrupted else self.limit
            self.loop.log.end(self.loop.history.step, outcome.reason or why)
        except BaseException as error:
            with contextlib.suppress(OSError):  # the first error says more
                self.loop.log.end(self.loop.history.step, _told(error))
                self.files.draw(self.loop.history)
            raise
        self.files.draw(self.loop.history)
        return outcome

    def record(self) -> dict[str, Any]:
        """What the log says of the run; see `make_record`."""
        raise NotImplementedError


def _told(error: BaseException) -> str:
    """An error, for the log."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C twice, at once"
    return str(error).partition("\n")[0] or type(error).__name__


def load_data(
    source: str | Path,
    words: Vocabulary | Tokenizer,
    settings: TrainSettings,
    n_ctx: int,
    seed: int,
    template: Template | None = None,
) -> Data:
    """The data of a run: a text, or what is in a file.

    Raises:
        DataError, SettingError: they cannot be used; see `read_corpus` and `prepare_data`.
    """
    codec = Codec.of(words)
    if isinstance(source, str):
        corpus = text_corpus([source], codec, settings, n_ctx)
    else:
        corpus = read_corpus(source, codec, settings, n_ctx, template)
    return prepare_data(corpus, codec, settings, n_ctx, seed)


def record_step(
    model: Llama,
    n_batch: int,
    settings: OptimiserSettings | LbfgsSettings,
    checkpoints: Checkpoints = None,
    n_parts: int = 1,
    is_packed: bool = False,
    adapter: TrainedAdapter | None = None,
    n_ctx: int | None = None,
    flash: bool = True,
    matmul: Matmul = "f32",
) -> Step:
    """The training step of a model on (n_batch, n_ctx) tokens, recorded and not yet compiled.

    Args:
        checkpoints: see `Graph.backward`; a `MemoryBudget` is about the whole step.
        n_parts: parts of n_batch rows that a batch goes through in.
        is_packed: batches have positions and segments.
        adapter: that is trained, attached to the model.
        n_ctx: by default that of the model.
        flash: attention in one op.
        matmul: see `Graph.compile`.
    """
    if isinstance(checkpoints, MemoryBudget):
        checkpoints = replace(checkpoints, matmul=matmul)
    context = Context(no_alloc=model.context.no_alloc)
    shape = (n_batch, n_ctx or model.config.n_ctx)
    names = Batch._fields if is_packed else ("tokens", "targets")
    inputs = {name: context.input(shape, "i32", name) for name in names}
    loss = model.loss(**inputs, flash=flash)
    step: Step
    if isinstance(settings, LbfgsSettings):
        step = LbfgsStep(loss, [*inputs.values()], settings, checkpoints, n_parts)
    else:
        step = TrainingStep(loss, [*inputs.values()], settings, checkpoints, n_parts)
    step.matmul = matmul
    if adapter is not None and adapter.seed is not None:
        with adapter.without_dropout():
            step.plain_loss = model.loss(**inputs, flash=flash)
        step.before = adapter.set_step
    return step


def fit_step(
    model: Llama,
    settings: TrainSettings,
    is_packed: bool,
    adapter: TrainedAdapter | None = None,
) -> Step:
    """The step that the settings ask for, with checkpoints that let it fit the memory.

    Raises:
        SettingError: it cannot fit; says which settings would.
    """
    available = available_bytes()

    def record(checkpoints: Checkpoints, n_batch: int, n_ctx: int) -> Step:
        return record_step(
            model,
            n_batch,
            settings.optimiser(),
            checkpoints,
            settings.grad_acc,
            is_packed,
            adapter,
            n_ctx,
            settings.use_flash,
            settings.matmul,
        )

    checkpoints = settings.checkpoints(available)
    return fitting_step(record, checkpoints, settings.batch, model.config.n_ctx, available)


def order_seed(settings: TrainSettings, start: Checkpoint | None) -> int:
    """The seed of the order of the data: a resumed run keeps its own, unless another is given."""
    if start is None or settings.seed != stored_course(start.file.metadata).get(
        "seed", settings.seed
    ):
        return settings.seed
    if settings.force_reshuffle:
        return key_of(start.progress.seed, start.progress.step) >> 1
    return start.progress.seed


def wanted_steps(settings: TrainSettings, batches: Batches) -> tuple[int, str]:
    """Steps of a run in all, and the rule they come from, in words.

    >>> from yupana.train.rows import WindowRows
    >>> import numpy as np
    >>> batches = Batches(WindowRows(np.arange(100, dtype=np.int32), n_ctx=4), n_batch=2)
    >>> wanted_steps(TrainSettings(epochs=2), batches)
    (25, 'epochs 2')
    >>> wanted_steps(TrainSettings(epochs=2, adam_iter=9), batches)
    (9, 'adam_iter 9, which comes before epochs 2')
    """
    asked, epochs = settings.adam_iter, settings.epochs
    if epochs < 0:
        return (
            (_STEPS, f"{_STEPS} steps by default")
            if asked is None
            else (asked, f"adam_iter {asked}")
        )
    steps = max(1, batches.steps(epochs))
    if asked is None:
        return steps, f"epochs {epochs}"
    if steps < asked:
        return steps, f"epochs {epochs}, which come before adam_iter {asked}"
    return asked, f"adam_iter {asked}, which comes before epochs {epochs}"


def make_run(
    settings: TrainSettings,
    step: Step,
    data: Data,
    seed: int,
    files: RunFiles,
    params: Mapping[str, Tensor],
    start: Checkpoint | None = None,
    display: Display | None = None,
    factors: Mapping[str, float] | None = None,
    writing: Writing | None = None,
) -> Run:
    """Put the pieces together, fill in a checkpoint, and compile; nothing is trained or written.

    Args:
        seed: of the order of the data.
        params: what is trained, by name; they have their values unless there is a checkpoint.
        factors: of an adapter, see `Checkpoint.restore`.
        writing: of texts for the log.

    Raises:
        YupanaError: settings out of range, or a checkpoint that does not fit.
    """
    schedule, rules = settings.schedule(), settings.stop_rules()
    n_rows = settings.batch * settings.grad_acc
    batches, history = Batches(data.training, n_rows, seed), History()
    log_path = files.places.log_path
    if start is not None:
        start.check_data(data.hash)
        start.restore(params, step, factors)
        for note in start.notes:
            (display or Silent()).tell(note)
        progress = start.progress
        history = read_history(log_path, progress.step, progress.best, progress.stop)
        history.rows = progress.rows
        batches = replace(batches, offset=progress.rows - progress.step * n_rows)
    evaluation = None
    if data.validation is not None:
        most = settings.validation_batches * n_rows or data.validation.n_per_epoch
        evaluation = Evaluation(step, even_batch(data.validation, most))
    steps, limit = wanted_steps(settings, batches)
    events = None if settings.tensorboard is None else EventFile(settings.tensorboard)
    loop = Loop(
        step,
        batches,
        schedule,
        LoopSettings(
            steps, settings.eval_every, settings.save_every, settings.generate_every, rules
        ),
        evaluation=evaluation,
        writing=writing,
        keeper=files,
        log=Log(log_path, append=start is not None, events=events),
        display=display,
        history=history,
    )
    if history.step >= steps:
        (display or Silent()).tell(
            f"{settings.checkpoint_in}: {history.step} steps are made, and {steps} are wanted: "
            f"nothing is left to train ({limit}). --adam-iter and --epochs count from the first "
            "step."
        )
    program = step.compile(settings.n_threads)
    adapter = [p for name, p in params.items() if name.rpartition(".")[0] in (factors or {})]
    bill = make_bill(step, max(1, steps - history.step), program.threads, adapter)
    return Run(settings, step, bill, data, loop, files, limit)
