"""Checkpoints: what is learned, with everything a run needs to go on as if it had not stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import DataError, FileFormatError, SettingError
from yupana.graphlib.tensor import Tensor
from yupana.models.formats import GgufFile, expect, write_gguf
from yupana.models.llama import LlamaConfig
from yupana.models.llama_gguf import read_config
from yupana.models.vocabulary_gguf import Words, read_words
from yupana.train.ggml_checkpoint import (
    check_versions,
    floats,
    is_from_ggml,
    order_seed,
    read_values,
    stop_state,
)
from yupana.train.step import Step
from yupana.train.stop import StopState

# training.type, as ggml calls it: of a model trained from scratch, and of an adapter
MODEL, ADAPTER = "train_model", "finetune_lora"
_PROGRAMS = {MODEL: "pretrain", ADAPTER: "finetune"}


@dataclass(frozen=True)
class Progress:
    """How far a run had come."""

    step: int  # updates made
    best: float  # lowest validation loss; infinite without one
    data_hash: str | None  # of the training data; None: not known
    seed: int  # of the order of the data
    stop: StopState = field(default_factory=StopState)
    rows: int = 0  # of data taken


def save_checkpoint(
    path: str | PathLike[str],
    kind: str,
    metadata: Mapping[str, Any],
    params: Mapping[str, Tensor],
    step: Step,
    progress: Progress,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        kind: MODEL or ADAPTER.
        metadata: what else is needed to make the step again, settings among it.
        params: what is trained, by name.
    """
    entries = {
        **metadata,
        "general.name": "yupana checkpoint",
        "training.type": kind,
        "training.file_version": 1,
        "training.iteration_count": progress.step,
        "training.sample_count": progress.rows,
        "training.best_validation_loss": np.float64(progress.best),
        "training.data_hash": progress.data_hash,
        "training.seed": progress.seed,
        "training.loss.best": np.float64(progress.stop.best),
        "training.loss.previous": np.float64(progress.stop.previous),
        "training.loss.no_improvement_count": progress.stop.n_no_improvement,
        "training.loss.no_better_validation_count": progress.stop.n_no_better_validation,
        "training.loss.past": np.array(progress.stop.past, np.float64),
        "optimizer.type": step.kind,
    }
    leaves = {**params, **step.state}
    write_gguf(path, entries, {name: leaf.data for name, leaf in leaves.items()})


class Checkpoint:
    """A checkpoint opened for reading: ours, or one of ggml's finetune or train-text-from-scratch.

    Args:
        kind: MODEL or ADAPTER.

    Raises:
        FileFormatError: no GGUF file, or one that is no such checkpoint.
        OSError: the system cannot read it.

    Attributes:
        file: where it is.
        is_from_ggml: it was written by ggml's programs.
        progress: how far the run had come.
        notes: lines about what cannot be as before, for the user.
    """

    def __init__(self, path: str | PathLike[str], kind: str) -> None:
        self.file = GgufFile(path)
        m = self.file.metadata
        got = expect(m, "training.type", str, "none")
        if got != kind:
            hint = "A model file has no optimiser state to go on from."
            if got in _PROGRAMS:
                hint = f"Go on from it with `yupana {_PROGRAMS[got]}`."
            raise FileFormatError(
                f"{path}: no such checkpoint: got training.type {got!r}, want {kind!r}. {hint}"
            )
        self.is_from_ggml = is_from_ggml(m)
        self.notes: list[str] = []
        self.progress = self._ggml_progress() if self.is_from_ggml else self._progress()

    def _progress(self) -> Progress:
        m = self.file.metadata
        return Progress(
            expect(m, "training.iteration_count", int),
            expect(m, "training.best_validation_loss", float),
            expect(m, "training.data_hash", str),
            expect(m, "training.seed", int),
            StopState(
                expect(m, "training.loss.best", float),
                expect(m, "training.loss.previous", float),
                expect(m, "training.loss.no_improvement_count", int),
                list(expect(m, "training.loss.past", list)),
                expect(m, "training.loss.no_better_validation_count", int),
            ),
            expect(m, "training.sample_count", int),
        )

    def _ggml_progress(self) -> Progress:
        check_versions(self.file)
        m = self.file.metadata
        step = expect(m, "optimizer.iteration_count", int)
        self.notes.append(
            f"{self.file.path}: written by ggml after {step} steps: the data come in a new order "
            "from here on, since theirs cannot be continued"
        )
        stop, rows = stop_state(self.file, step), expect(m, "training.sample_count", int)
        return Progress(step, math.inf, None, order_seed(m), stop, rows)

    def check_data(self, data_hash: str) -> None:
        """Raise unless the training data are those of the checkpoint.

        Raises:
            DataError: they differ.
        """
        if self.progress.data_hash not in (None, data_hash):
            raise DataError(
                f"{self.file.path}: made with other training data: got data of hash {data_hash}, "
                f"want {self.progress.data_hash}. Go on with the same data, rules for "
                "samples, context and share of validation, or start afresh."
            )

    def read_model(self) -> tuple[LlamaConfig, Words, dict[str, Any]]:
        """Sizes and vocabulary of the model that is trained, the latter as entries too.

        Raises:
            FileFormatError: they are missing, or do not fit each other.
        """
        config = read_config(self.file)
        vocabulary, entries = read_words(self.file.metadata)
        if len(vocabulary) != config.n_vocab:
            raise FileFormatError(
                f"{self.file.path}: the vocabulary does not fit the model: got {len(vocabulary)} "
                f"tokens, want {config.n_vocab}."
            )
        return config, vocabulary, entries

    def restore(
        self,
        params: Mapping[str, Tensor],
        step: Step | None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Fill parameters and the optimiser's state.

        Args:
            params: what is trained, by name.
            step: has the optimiser; None: the parameters are all that is wanted.
            factors: of an adapter, weight to what its B · A is multiplied by.

        Raises:
            SettingError: the checkpoint is of another optimiser.
            FileFormatError: a tensor is missing or has another shape; nothing is changed.
        """
        state: Mapping[str, Tensor] = {}
        if step is not None:
            self._check_optimiser(step)
            state = step.state
        wanted: dict[str, Tensor] = {**params, **state}
        values: Mapping[str, NDArray[np.float32]]
        if self.is_from_ggml:
            shapes = {name: param.shape for name, param in params.items()}
            values, is_sure = read_values(self.file, shapes, factors or {}, bool(state))
            if not is_sure:
                self.notes.append(
                    f"{self.file.path}: in which order ggml wrote the optimiser's moments cannot "
                    "be told: they start from zero"
                )
        else:
            values = {name: floats(self.file, name) for name in wanted}
        for name, tensor in wanted.items():
            if values[name].shape != tensor.shape:
                raise FileFormatError(
                    f"{self.file.path}: {name}: got {values[name].shape}, want {tensor.shape}."
                )
        for name, tensor in wanted.items():
            tensor.set(values[name])

    def _check_optimiser(self, step: Step) -> None:
        kind = expect(self.file.metadata, "optimizer.type", str)
        if kind != step.kind:
            raise SettingError(
                f"{self.file.path}: made with another optimiser: got {kind!r}, want "
                f"{step.kind!r}. Go on with the same one, or start afresh."
            )
