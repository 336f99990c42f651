"""What an adapter was trained with, as checkpoints hold it; a run that goes on keeps to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.formats import GgufFile, expect
from yupana.models.llama import LlamaConfig
from yupana.models.llama_gguf import llama_metadata
from yupana.train.checkpoint import Checkpoint
from yupana.train.course import course_entries, keep_course
from yupana.train.ggml_checkpoint import lora_ranks
from yupana.train.lora_settings import LoraSettings
from yupana.train.settings import FinetuneSettings

# Settings that take the place of what the base says of itself, and where.
OF_MODEL = {
    "norm_rms_eps": "rms_eps",
    "rope_freq_base": "rope_base",
    "rope_freq_scale": "rope_scale",
}
BASE_HASH = "training.base_hash"
_SETTINGS = "training.lora.settings"
_OF_GGML = {  # its finetune writes the scale as it is, though a model file would have its inverse
    "norm_rms_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_freq_base": "llama.rope.freq_base",
    "rope_freq_scale": "llama.rope.scale_linear",
}
_BLOCK = 1 << 22  # bytes of a file hashed at a time


def adapter_entries(settings: FinetuneSettings, config: LlamaConfig) -> dict[str, Any]:
    """What a checkpoint says of the adapter and its base, with finetune's keys where they fit."""
    names = [*(f.name for f in fields(LoraSettings)), *OF_MODEL]
    return (
        llama_metadata(config)
        | course_entries(settings)
        | {
            _SETTINGS: json.dumps({name: getattr(settings, name) for name in names}),
            BASE_HASH: hash_model(settings.model_base),
        }
    )


def go_on(settings: FinetuneSettings, start: Checkpoint) -> FinetuneSettings:
    """The settings, with what a checkpoint says in place of all that was not given.

    Of ggml's these are the ranks, and what took the place of the model's own words.

    Raises:
        SettingError: something else is asked for than is in the checkpoint.
    """
    metadata = start.file.metadata
    if not start.is_from_ggml:
        kept = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in _stored(start).items()
            if name not in settings.given or getattr(settings, name) is None
        }
        return keep_course(settings.changed(**kept), start)
    found: dict[str, Any] = lora_ranks(metadata)
    said = {name: key for name, key in _OF_GGML.items() if key in metadata}
    found |= {name: expect(metadata, key, float) for name, key in said.items()}
    for name, there in found.items():
        given = getattr(settings, name)
        if given == -1 and settings.lora_r != LoraSettings.lora_r:
            name, given = "lora_r", settings.lora_r
        is_given = given is not None and given != getattr(FinetuneSettings, name)
        if is_given and np.float32(given) != np.float32(there):
            _refuse(start, name, given, there)
    return settings.changed(**found)


def check_start(start: Checkpoint, entries: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of the same base and of an adapter of the same form.

    Args:
        entries: see `adapter_entries`, of the run that is to go on.
    Raises:
        DataError: it is of another base. SettingError: of an adapter of another form.
    """
    base = expect(start.file.metadata, BASE_HASH, str)
    if base != entries[BASE_HASH]:
        raise DataError(
            f"{start.file.path}: made with another base: got a model of hash {entries[BASE_HASH]}, "
            f"want {base}. Go on with the same file, or start afresh."
        )
    before, now = _stored(start), json.loads(entries[_SETTINGS])
    for name in now:
        if before.get(name) != now[name]:
            there = "what the model says" if before.get(name) is None else before[name]
            _refuse(start, name, now[name], there)


def _stored(start: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(expect(start.file.metadata, _SETTINGS, str))
    return found


def _refuse(start: Checkpoint, name: str, given: object, there: object) -> None:
    shown = there if isinstance(there, str) and " " in there else repr(there)
    raise SettingError(
        f"{start.file.path}: {name}: got {given!r}, want {shown} as in the checkpoint. "
        "Go on with the same settings of the adapter, or start afresh."
    )


def hash_model(path: Path) -> str:
    """Of the content of a model's file, or of all its files."""
    with GgufFile(path) as model:
        parts = model.parts
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
