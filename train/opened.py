"""A base opened for fine-tuning: the adapter beside it, and the weights that are trained whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.errors import SettingError
from yupana.graphlib.tensor import Tensor
from yupana.models.formats import GgufFile, expect
from yupana.models.llama import FAMILIES, Llama
from yupana.models.loading import load_model
from yupana.models.lora import Floats, rows_of
from yupana.models.tokenizer import read_tokenizer
from yupana.models.tokenizer_base import Tokenizer
from yupana.train.adapted import OF_MODEL, adapter_entries, check_start, go_on
from yupana.train.adapter_formats import check_outputs, without_tied_pair
from yupana.train.checkpoint import ADAPTER, MODEL, Checkpoint
from yupana.train.conversation import read_template, with_template
from yupana.train.lora import TrainedAdapter
from yupana.train.run import order_seed
from yupana.train.samples import Template
from yupana.train.settings import FinetuneSettings

_CONSTANT = "rope_freqs.weight"  # factors of angles, which are not learned


@dataclass(frozen=True)
class Opened:
    """A base with what is trained beside and in it, and what a checkpoint says of them."""

    settings: FinetuneSettings
    start: Checkpoint | None
    model: Llama
    tokenizer: Tokenizer
    template: Template | None
    adapter: TrainedAdapter
    whole: dict[str, Tensor]
    seed: int
    own_ctx: int  # the context that the base says it has

    @cached_property
    def entries(self) -> dict[str, Any]:
        """What a checkpoint says of base and adapter."""
        return adapter_entries(self.settings, self.model.config)

    @property
    def params(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self.adapter.parameters | self.whole


def open_base(settings: FinetuneSettings) -> Opened:
    """Open base and checkpoint, and make the adapter.

    Raises:
        YupanaError: as `yupana.train.finetune.finetune`.
    """
    settings = with_template(settings)
    start = None if settings.checkpoint_in is None else Checkpoint(settings.checkpoint_in, ADAPTER)
    if start is not None:
        settings = go_on(settings, start)
    settings.check()
    settings = settings.seeded()
    check_outputs(settings)
    with GgufFile(settings.model_base) as file:
        base = load_base(file)
        tokenizer = read_tokenizer(file.metadata)
        template = read_template(settings.chat_template, file.metadata, tokenizer)
    seed = order_seed(settings, start)
    model, adapter, whole = adapt(base, settings, seed)
    own_ctx = base.config.n_ctx
    opened = Opened(settings, start, model, tokenizer, template, adapter, whole, seed, own_ctx)
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
    architecture = expect(file.metadata, "general.architecture", str)
    if architecture not in FAMILIES:
        raise SettingError(
            f"{file.path}: this architecture cannot be adapted: got {architecture!r}, want one of "
            f"{', '.join(map(repr, FAMILIES))}, which are trained here; others may be read."
        )
    base = load_model(file, rounds=False)
    assert isinstance(base, Llama)
    return base


def adapt(
    base: Llama, settings: FinetuneSettings, seed: int, no_alloc: bool = False
) -> tuple[Llama, TrainedAdapter, dict[str, Tensor]]:
    """The model with a fresh adapter attached, the adapter, and weights to be trained as a whole.

    Args:
        no_alloc: count only; what is trained has no values.
    Raises:
        SettingError: nothing is to be trained, or a pair that no program could use.
    """
    settings = without_tied_pair(base.config, settings)
    model, whole = _trainable(base, settings, no_alloc)
    frozen = {name: w for name, w in model.weights.items() if name not in whole}
    adapter = TrainedAdapter(frozen, settings, seed, no_alloc)
    if not adapter.pairs and not whole:
        raise SettingError(
            "finetune: nothing to train: got ranks of 0 for all that is in the model, want one "
            "above, or train_whole."
        )
    model.attach_part("trained", adapter)
    return model, adapter, whole


def _trainable(
    base: Llama, settings: FinetuneSettings, no_alloc: bool
) -> tuple[Llama, dict[str, Tensor]]:
    """The model with the run's context; weights to be trained as a whole are f32 parameters."""
    weights, context = dict(base.weights), Context(no_alloc=no_alloc)
    whole: dict[str, Tensor] = {}
    for name in names_of_whole(settings, [*weights]):
        whole[name] = context.param(base.weights[name].shape, name=name)
        if not no_alloc:
            values: Floats = np.concatenate([rows for _, rows in rows_of(base.weights[name])])
            whole[name].set(values)
    given = {field: getattr(settings, name) for name, field in OF_MODEL.items()}
    changes = {field: value for field, value in given.items() if value is not None}
    config = replace(base.config, n_ctx=settings.ctx, **changes)
    return Llama(config, base.context, weights | whole, rounds=False), whole


def names_of_whole(settings: FinetuneSettings, names: list[str]) -> list[str]:
    """Weights that are trained whole: those of `train_whole` that `freeze` leaves.

    Raises:
        SettingError: a pattern that matches nothing, or nothing is left to train.

    >>> settings = FinetuneSettings(model_base="m.gguf", train_whole=("*",), freeze=("blk.0.*",))
    >>> names_of_whole(settings, ["output.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight"])
    ['output.weight', 'blk.1.attn_q.weight']
    """
    names = [name for name in names if name != _CONSTANT]
    found = _matching("train_whole", settings.train_whole, names)
    frozen = _matching("freeze", settings.freeze, names)
    left = [name for name in names if name in found and name not in frozen]
    if found and not left:
        raise SettingError(
            f"finetune: freeze: got {settings.freeze}, which match all of train_whole; want some "
            "weights left to train."
        )
    return left


def _matching(setting: str, patterns: tuple[str, ...], names: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise SettingError(
                f"finetune: {setting}: got {pattern!r}, want a pattern that matches one of "
                f"{names[:4]}, …"
            )
        found |= matches
    return found
