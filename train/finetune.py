"""Training an adapter for a model file, or its weights: ggml's finetune, on a base of any type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yupana.graphlib.errors import SettingError
from yupana.graphlib.tensor import Tensor
from yupana.models.llama import Llama
from yupana.models.tokenizer_base import Tokenizer
from yupana.train.adapted import BASE_HASH
from yupana.train.checkpoint import ADAPTER, Progress, save_checkpoint
from yupana.train.files import RunFiles
from yupana.train.learned import Learned
from yupana.train.loop import History, Outcome
from yupana.train.lora import TrainedAdapter
from yupana.train.opened import Opened, open_base
from yupana.train.places import Places, check_apart, naming
from yupana.train.progress import Display, Silent
from yupana.train.record import make_record, relative
from yupana.train.run import Run, fit_step, load_data, make_run
from yupana.train.settings import FinetuneSettings
from yupana.train.writing import make_writing


@dataclass(frozen=True)
class Finetuning(Run):
    """A run that trains an adapter, weights as a whole, or both.

    Attributes:
        model: with the adapter attached; its weights lie in the mapped file.
        learned: what is trained, and writes it.
        base_hash: of the content of the model's file.
    """

    settings: FinetuneSettings
    model: Llama
    tokenizer: Tokenizer
    learned: Learned
    base_hash: str

    @property
    def adapter(self) -> TrainedAdapter:
        """The pairs."""
        return self.learned.adapter

    @property
    def whole(self) -> dict[str, Tensor]:
        """Weights that are trained as a whole, by name."""
        return self.learned.whole

    def record(self) -> dict[str, Any]:
        """What the log says of the run."""
        path = relative(self.settings.model_base, self.files.places.log_path.parent)
        base = {"path": path, "hash": self.base_hash}
        config, n_parameters = self.model.config, self.model.n_parameters
        return make_record(self, "finetune", config, n_parameters, base=base)

    def train(self) -> Outcome:
        """Train, write everything, and draw the loss curve; see `Run.train`."""
        outcome = super().train()
        out = self.settings.model_out
        if out is not None and self.adapter.pairs:
            with naming(out):
                self.learned.merge(out)
            self.files.written["model"] = out
        return outcome


def finetune(settings: FinetuneSettings, display: Display | None = None) -> Finetuning:
    """Open base and data, make adapter and step; nothing is trained or written yet.

    Raises:
        YupanaError: settings out of range, a base that is no LLaMA, data that cannot be used, a
            checkpoint that does not fit.

    An adapter of rank 8 for queries and values, on lines of chat::

        settings = FinetuneSettings(
            model_base=Path("model-Q4_K_M.gguf"),
            train_data=Path("chats.jsonl"),
            lora_r=8,
            target_modules=("q_proj", "v_proj"),
            epochs=3,
        )
        finetune(settings).train()
    """
    source, template_file = settings.source, settings.chat_template_file
    o = open_base(settings)
    settings, start, model, adapter = o.settings, o.start, o.model, o.adapter
    learned = Learned(settings, model, adapter, o.whole)
    if settings.ctx > o.own_ctx:
        (display or Silent()).tell(
            f"the context of {settings.ctx} is longer than the {o.own_ctx} tokens that the model "
            "says it was made for: of what comes later it has learned nothing yet"
        )
    places = Places(settings, learned.out, learned.what, settings.model_out)
    places.check(
        model_base=settings.model_base, train_data=source, chat_template_file=template_file
    )
    data = load_data(source, o.tokenizer, settings, settings.ctx, o.seed, o.template)
    step = fit_step(model, settings, data.training.is_packed, adapter)
    entries, params, seed = o.entries, o.params, o.seed

    def save(path: Path, history: History) -> None:
        learned.save(path)

    def save_state(path: Path, history: History) -> None:
        progress = Progress(history.step, history.best, data.hash, seed, history.stop, history.rows)
        save_checkpoint(path, ADAPTER, entries, params, step, progress)

    files = RunFiles(places, save, save_state)
    threads, plain = settings.n_threads, adapter.without_dropout
    writing = make_writing(settings, model, o.tokenizer, data, settings.seed, threads, plain)
    factors = adapter.factors if adapter.pairs else None
    run = make_run(settings, step, data, seed, files, params, start, display, factors, writing)
    base_hash = entries[BASE_HASH]
    return Finetuning(
        **vars(run), model=model, tokenizer=o.tokenizer, learned=learned, base_hash=base_hash
    )


def write_learned(settings: FinetuneSettings) -> dict[str, Path]:
    """Write the adapter of a checkpoint, ours or one of ggml's, without training.

    With `model_out` the model with all that was learned in it is written too.

    Returns:
        What was written, to where it is.
    Raises:
        YupanaError: no checkpoint is given, or it does not fit the base.
        OSError: the system cannot write.
    """
    if settings.checkpoint_in is None:
        raise SettingError(
            "finetune: only_write_lora: got no checkpoint_in, want the checkpoint to write."
        )
    read = {"model_base": settings.model_base, "checkpoint_in": settings.checkpoint_in}
    if settings.chat_template_file is not None:
        read["chat_template_file"] = settings.chat_template_file
    o = open_base(settings)
    learned = Learned(o.settings, o.model, o.adapter, o.whole)
    wanted = {learned.what: (learned.out, learned.save)}
    if o.settings.model_out is not None:
        wanted["model"] = o.settings.model_out, learned.merge
    for what, (out, _) in wanted.items():
        check_apart(out, "lora_out" if what == "adapter" else "model_out", read)
    written, step = {}, _restore(o)
    for what, (out, write) in wanted.items():
        out.parent.mkdir(parents=True, exist_ok=True)
        written[what] = out.with_name(out.name.replace(settings.pattern_fn_it, str(step)))
        write(written[what])
    return written


def _restore(opened: Opened) -> int:
    """Fill what is trained from the checkpoint; returns the number of its steps."""
    assert opened.start is not None
    opened.start.restore(opened.params, None, opened.adapter.factors)
    return opened.start.progress.step
