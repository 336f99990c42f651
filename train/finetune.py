"""Training an adapter for a model file: ggml's finetune, on a base of any type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.errors import SettingError
from yupana.graphlib.tensor import Tensor
from yupana.models.adapter_save import save_as_named
from yupana.models.chat_template import ChatTemplate, special_words
from yupana.models.formats import GgufFile, expect
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import llama_metadata, read_config
from yupana.models.loading import load_model
from yupana.models.lora import Floats, rows_of
from yupana.models.merge import merge_adapters
from yupana.models.tokenizer import read_tokenizer
from yupana.models.tokenizer_base import Tokenizer
from yupana.train.adapted import BASE_HASH, OF_MODEL, adapter_entries, check_start, go_on
from yupana.train.adapter_formats import check_outputs, without_tied_pair
from yupana.train.checkpoint import ADAPTER, MODEL, Checkpoint, Progress, save_checkpoint
from yupana.train.files import RunFiles
from yupana.train.loop import History, Outcome
from yupana.train.lora import TrainedAdapter
from yupana.train.places import Places, check_apart, naming
from yupana.train.progress import Display
from yupana.train.record import make_record, relative
from yupana.train.run import Run, fit_step, load_data, make_run, order_seed
from yupana.train.samples import Template
from yupana.train.settings import FinetuneSettings
from yupana.train.writing import make_writing

# Entries of a model file, by the setting they follow; the last one is an older name.
_SCALING = ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear")
_KEYS = {
    "norm_rms_eps": ("llama.attention.layer_norm_rms_epsilon",),
    "rope_freq_base": ("llama.rope.freq_base",),
    "rope_freq_scale": _SCALING,
}


@dataclass(frozen=True)
class Finetuning(Run):
    """A run that trains an adapter.

    Attributes:
        model: with the adapter attached; its weights lie in the mapped file.
        whole: weights that are trained as a whole, by name.
        base_hash: of the content of the model's file.
    """

    settings: FinetuneSettings
    model: Llama
    tokenizer: Tokenizer
    adapter: TrainedAdapter
    whole: dict[str, Tensor]
    base_hash: str

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
        if out is not None:
            with naming(out):
                self.merge(out)
            self.files.written["model"] = out
        return outcome

    def merge(self, path: Path) -> None:
        """Write the model with what was learned in it; each tensor keeps its type."""
        learned = [(self.adapter.adapter("trained"), 1.0)]
        whole = {name: w.numpy().astype(np.float32, copy=False) for name, w in self.whole.items()}
        entries = self._changed_entries()
        merge_adapters(self.settings.model_base, learned, path, whole=whole, entries=entries)

    @property
    def overridden(self) -> dict[str, float]:
        """Settings that changed what the base says of itself, and their values."""
        with GgufFile(self.settings.model_base) as file:
            own, now = read_config(file), self.model.config
        pairs = {name: (getattr(own, f), getattr(now, f)) for name, f in OF_MODEL.items()}
        return {name: value for name, (before, value) in pairs.items() if value != before}

    def _changed_entries(self) -> dict[str, Any]:
        """What a file with the adapter worked in says of the model in place of the base's words."""
        said = llama_metadata(self.model.config)
        return {key: said.get(key) for name in self.overridden for key in _KEYS[name]}


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
    places = Places(settings, settings.lora_out, "adapter", settings.model_out)
    places.check(model_base=settings.model_base, train_data=settings.source)
    o = _open(settings)
    settings, start, model, adapter, whole = o.settings, o.start, o.model, o.adapter, o.whole
    data = load_data(settings.source, o.tokenizer, settings, settings.ctx, o.seed, o.template)
    step = fit_step(model, settings, data.training.is_packed, adapter)
    entries, params, seed = o.entries, o.params, o.seed
    save = partial(_save_adapter, adapter, model.config, settings.model_base)

    def save_state(path: Path, history: History) -> None:
        progress = Progress(history.step, history.best, data.hash, seed, history.stop, history.rows)
        save_checkpoint(path, ADAPTER, entries, params, step, progress)

    files = RunFiles(places, save, save_state)
    threads, plain = settings.n_threads, adapter.without_dropout
    writing = make_writing(settings, model, o.tokenizer, data, settings.seed, threads, plain)
    factors = adapter.factors
    run = make_run(settings, step, data, seed, files, params, start, display, factors, writing)
    return Finetuning(
        **vars(run),
        model=model,
        tokenizer=o.tokenizer,
        adapter=adapter,
        whole=whole,
        base_hash=entries[BASE_HASH],
    )


def write_adapter(settings: FinetuneSettings) -> Path:
    """Write the adapter of a checkpoint, ours or one of ggml's, without training; returns its path.

    Raises:
        YupanaError: no checkpoint is given, or it does not fit the base.
        OSError: the system cannot write.
    """
    if settings.checkpoint_in is None:
        raise SettingError(
            "finetune: only_write_lora: got no checkpoint_in, want the checkpoint to write."
        )
    out = settings.lora_out
    read = {"model_base": settings.model_base, "checkpoint_in": settings.checkpoint_in}
    check_apart(out, "lora_out", read)
    o = _open(settings)
    assert o.start is not None
    o.start.restore(o.params, None, o.adapter.factors)
    out.parent.mkdir(parents=True, exist_ok=True)
    step = o.start.progress.step
    path = out.with_name(out.name.replace(settings.pattern_fn_it, str(step)))
    _save_adapter(o.adapter, o.model.config, settings.model_base, path, History(step))
    return path


@dataclass(frozen=True)
class _Opened:
    """A base with an adapter beside it, and what a checkpoint says of them."""

    settings: FinetuneSettings
    start: Checkpoint | None
    model: Llama
    tokenizer: Tokenizer
    template: Template | None
    adapter: TrainedAdapter
    whole: dict[str, Tensor]
    seed: int

    @cached_property
    def entries(self) -> dict[str, Any]:
        return adapter_entries(self.settings, self.model.config)

    @property
    def params(self) -> dict[str, Tensor]:
        return self.adapter.parameters | self.whole


def _open(settings: FinetuneSettings) -> _Opened:
    """Open base and checkpoint, and make the adapter."""
    start = None if settings.checkpoint_in is None else Checkpoint(settings.checkpoint_in, ADAPTER)
    if start is not None:
        settings = go_on(settings, start)
    settings.check()
    settings = settings.seeded()
    check_outputs(settings)
    with GgufFile(settings.model_base) as file:
        base = load_base(file)
        tokenizer = read_tokenizer(file.metadata)
        template = _template(settings, file, tokenizer)
    seed = order_seed(settings, start)
    model, adapter, whole = adapt(base, settings, seed)
    opened = _Opened(settings, start, model, tokenizer, template, adapter, whole, seed)
    if start is not None and not start.is_from_ggml:  # which says nothing of its base
        check_start(start, opened.entries)
    return opened


def load_base(file: GgufFile) -> Llama:
    """The model of a file, to be adapted.

    Raises:
        SettingError: it is no model, or no LLaMA.
    """
    kind = expect(file.metadata, "general.type", str, "model")
    if expect(file.metadata, "training.type", str, MODEL) != MODEL:
        kind = "checkpoint of an adapter"
    if kind != "model":
        raise SettingError(f"{file.path}: got a file of type {kind!r}, want the model to adapt.")
    base = load_model(file, rounds=False)
    if not isinstance(base, Llama):
        raise SettingError(f"{file.path}: got a model of {base.architecture!r}, want 'llama'.")
    return base


def adapt(
    base: Llama, settings: FinetuneSettings, seed: int
) -> tuple[Llama, TrainedAdapter, dict[str, Tensor]]:
    """The model with a fresh adapter attached, the adapter, and weights to be trained as a whole.

    Raises:
        SettingError: nothing is to be trained, or a pair that no program could use.
    """
    settings = without_tied_pair(base.config, settings)
    model, whole = _trainable(base, settings)
    frozen = {name: w for name, w in model.weights.items() if name not in whole}
    adapter = TrainedAdapter(frozen, settings, seed)
    model.attach_part("trained", adapter)
    return model, adapter, whole


def _trainable(base: Llama, settings: FinetuneSettings) -> tuple[Llama, dict[str, Tensor]]:
    """The model with the run's context; weights to be trained as a whole are f32 parameters."""
    weights, whole = dict(base.weights), {}
    context = Context()
    for pattern in settings.train_whole:
        found = [name for name in weights if fnmatchcase(name, pattern)]
        if not found:
            raise SettingError(
                f"finetune: train_whole: got {pattern!r}, want a pattern that matches one of "
                f"{[*weights][:4]}, …"
            )
        for name in found:
            values: Floats = np.concatenate([rows for _, rows in rows_of(base.weights[name])])
            whole[name] = context.param(base.weights[name].shape, name=name).set(values)
    given = {field: getattr(settings, name) for name, field in OF_MODEL.items()}
    changes = {field: value for field, value in given.items() if value is not None}
    config = replace(base.config, n_ctx=settings.ctx, **changes)
    return Llama(config, base.context, weights | whole, rounds=False), whole


def _template(settings: FinetuneSettings, file: GgufFile, tokenizer: Tokenizer) -> Template | None:
    """What makes text of chat messages; None where the model has no template and none is given."""
    source = settings.chat_template
    if source is None:
        source = expect(file.metadata, "tokenizer.chat_template", str, "") or None
    return None if source is None else ChatTemplate(source, special_words(tokenizer)).render


def _save_adapter(
    adapter: TrainedAdapter, sizes: LlamaConfig, base: Path, path: Path, history: History
) -> None:
    save_as_named(path, adapter.adapter(path.stem), sizes, str(base))
