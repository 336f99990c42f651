"""The training step of a run made again from its record, to be drawn and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from yupana.graphlib.errors import DataError
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama, LlamaConfig
from yupana.train.adapted import hash_model
from yupana.train.opened import adapt, load_base
from yupana.train.record import read_settings
from yupana.train.report.runlog import RunLog
from yupana.train.run import fit_step
from yupana.train.settings import FinetuneSettings, RunSettings
from yupana.train.step import Step, TrainingStep


def make_step_again(log: RunLog) -> Step:
    """The step, compiled for as many threads; weights that were trained are fresh ones.

    Neither the data nor what was learned is needed: kernels take as long with any numbers.

    Raises:
        YupanaError: the record cannot be followed, the base of an adapter has changed, or the step
            does not fit the memory of this machine.
        OSError: the base cannot be read.
    """
    record = log.record
    is_packed = bool(record["data"]["is_packed"])
    if record["program"] == "finetune":
        step = _finetuning(log, is_packed)
    else:
        settings = read_settings(RunSettings, record["settings"])
        model = Llama(_config(record["model"])).init(settings.seed)
        step = fit_step(model, settings, is_packed)
    if isinstance(step, TrainingStep):
        step.optimiser.set(0)
    step.before(0)
    n_vocab = record["model"]["n_vocab"]
    _fill(step, n_vocab)
    step.compile(record["threads"])
    return step


def _finetuning(log: RunLog, is_packed: bool) -> Step:
    path = log.file(log.record["base"]["path"])
    if not path.exists():
        raise DataError(f"the model {path}, whose adapter this is, is not there any more")
    if hash_model(path) != log.record["base"]["hash"]:
        raise DataError(f"the model {path}, whose adapter this is, has changed since")
    settings = read_settings(FinetuneSettings, log.record["settings"])
    settings = replace(settings, model_base=path)
    with GgufFile(path) as file:
        base = load_base(file)
    model, adapter, _ = adapt(base, settings, settings.seed)
    return fit_step(model, settings, is_packed, adapter)


def _config(values: Mapping[str, Any]) -> LlamaConfig:
    known = {field.name for field in fields(LlamaConfig) if field.init}
    return LlamaConfig(**{name: value for name, value in values.items() if name in known})


def _fill(step: Step, n_vocab: int) -> None:
    """Put a batch of random tokens in, which is as much work as one of text."""
    random = np.random.default_rng(0)
    names = [leaf.name for leaf in step.inputs]
    for name, leaf in zip(names, step.inputs, strict=True):
        n_ctx = leaf.shape[-1]
        values = {
            "tokens": random.integers(0, n_vocab, leaf.shape),
            "targets": random.integers(0, n_vocab, leaf.shape),
            "positions": np.broadcast_to(np.arange(n_ctx), leaf.shape),
            "segments": np.ones(leaf.shape),
        }[name]
        leaf.set(values)
