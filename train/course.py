"""The settings that training depends on: checkpoints hold them, and resumed runs keep to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from yupana.models.formats import expect
from yupana.models.llama import LlamaConfig
from yupana.train.checkpoint import Checkpoint
from yupana.train.model_settings import OF_CONFIG
from yupana.train.samples import DataRules
from yupana.train.settings import FinetuneSettings, RunSettings
from yupana.train.train_settings import TrainSettings

PREFIX = "training.settings."
COURSE = (
    *(rule.name for rule in fields(DataRules)),
    *("ctx", "batch", "grad_acc", "use_flash", "matmul", "seed", "chat_template", "model_out_type"),
    *("optimizer", "lbfgs_iter", "param_group", "warmup", "rate_decay", "enable_restart"),
    *("adam_alpha", "adam_min_alpha", "adam_decay", "adam_decay_min_ndim", "adam_gclip"),
    *("adam_beta1", "adam_beta2", "cos_decay_steps", "cos_decay_min", "cos_decay_restart"),
    *("adam_iter", "epochs", "opt_past", "opt_delta", "opt_max_no_improvement", "adam_epsf"),
    *("patience", "eval_every", "validation_batches"),
)
_LENGTH = {"adam_iter", "epochs"}  # two words for one thing: who gives one does not want the other
_KINDS = {
    "adam_iter": int,
    "chat_template": str,
    "model_out_type": str,
}  # of those that are None by default
_S = TypeVar("_S", bound=TrainSettings)
_R = TypeVar("_R", bound=RunSettings)


def course_entries(settings: TrainSettings) -> dict[str, Any]:
    """What a checkpoint says of the settings; those that are empty are left out.

    >>> from yupana.train.settings import RunSettings
    >>> entries = course_entries(RunSettings(adam_alpha=0.1))
    >>> entries["training.settings.adam_alpha"].item(), len(entries) < len(COURSE)
    (0.1, True)
    """
    found = {}
    for name in COURSE:
        value = getattr(settings, name, None)
        if value not in (None, (), ""):
            kept = np.float64(value) if isinstance(value, float) else value
            found[PREFIX + name] = [*value] if isinstance(value, tuple) else kept
    return found


def stored_course(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint holds; none where it is ggml's.

    Raises:
        FileFormatError: a value is of another kind than the setting.
    """
    found: dict[str, Any] = {}
    if not any(key.startswith(PREFIX) for key in metadata):
        return found
    for name in COURSE:
        default = getattr(FinetuneSettings, name)
        kind = _KINDS.get(name) or type(default)
        if PREFIX + name not in metadata:
            found[name] = default  # it was empty, or this version is the first to know it
        elif kind is tuple:
            found[name] = tuple(map(str, expect(metadata, PREFIX + name, list)))
        else:
            found[name] = kind(expect(metadata, PREFIX + name, kind))
    return found


def keep_course(settings: _S, start: Checkpoint) -> _S:
    """The settings, with what a checkpoint says in place of all that was not given.

    What was given counts. Notes of the checkpoint say so, and what comes from it.
    """
    stored = {
        name: value
        for name, value in stored_course(start.file.metadata).items()
        if hasattr(settings, name)
    }
    given = set(settings.given)
    if settings.seed < 0:  # any will do, so that of the checkpoint does
        given.discard("seed")
    if given & _LENGTH:
        given |= _LENGTH
    taken = {name: value for name, value in stored.items() if name not in given}
    changed = [
        f"{name} {_shown(value)} in the checkpoint, {_shown(getattr(settings, name))} now"
        for name, value in stored.items()
        if name in settings.given and getattr(settings, name) != value and name not in taken
    ]
    usual = type(settings)
    kept = [f"{n} {_shown(v)}" for n, v in taken.items() if v != getattr(usual, n)]
    if kept:
        start.notes.append(f"{start.file.path}: goes on with {', '.join(kept)}, as before")
    if changed:
        start.notes.append(f"{start.file.path}: {'; '.join(changed)}")
    return settings.changed(**taken)


def keep_sizes(settings: _R, config: LlamaConfig, start: Checkpoint) -> _R:
    """The settings, with the sizes of the checkpoint's model, which cannot be changed.

    Notes of the checkpoint say which of those that were given are not used.
    """
    there: dict[str, Any] = {name: getattr(config, field) for name, field in OF_CONFIG.items()}
    asked = {name: getattr(settings, name) for name in OF_CONFIG}
    asked["head_kv"] = asked["head_kv"] or asked["head"]
    changed = [
        f"{name} {_shown(value)}, not {_shown(asked[name])}"
        for name, value in there.items()
        if name in settings.given and np.float32(asked[name]) != np.float32(value)
    ]
    if changed:
        start.notes.append(
            f"{start.file.path}: the model keeps its sizes when it goes on: {', '.join(changed)}"
        )
    return settings.changed(**there)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value if not isinstance(value, str) or len(value) < 60 else value[:50] + "…")
