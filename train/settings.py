"""What the programs `yupana pretrain` and `yupana finetune` can be told, with ggml's names.

The command line is made from these classes: a field is a flag, the comment above it its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yupana.train.lora_settings import LoraSettings
from yupana.train.model_settings import ModelSettings
from yupana.train.train_settings import TrainSettings, auto

__all__ = ["FinetuneSettings", "PretrainSettings", "RunSettings", "TrainSettings", "auto"]


@dataclass(frozen=True, kw_only=True)
class RunSettings(ModelSettings, TrainSettings):
    """How to train a model from scratch, whatever the text."""

    # Model file to write (GGUF); the best one by validation loss goes to NAME-best beside it.
    model_out: Path = Path("model.gguf")
    # Kind of vocabulary made from the text.
    vocab: Literal["bpe", "characters", "bytes"] = "bpe"
    # Tokens of a bpe vocabulary.
    n_vocab: int = 1024
    # Take the vocabulary of this model file instead.
    vocab_model: Path | None = None
    # Chat template for lines with messages, in Jinja, or chatml; the model gets it. By default that
    # of the model that the vocabulary is from.
    chat_template: str | None = None
    # File with the chat template.
    chat_template_file: Path | None = None
    # Train nothing: write the model of the checkpoint, and end.
    only_write_model: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """Train a small LLaMA from scratch on a text of your own."""

    # What to learn: text in UTF-8; or, by the name's end, JSON lines (.jsonl, .ndjson, .json) or an
    # array (.json). Needed wherever something is trained.
    train_data: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainSettings, LoraSettings):
    """Train a LoRA adapter for a model of your own, or its weights, on a text of your own."""

    # Model to adapt (GGUF); it is mapped and never changed.
    model_base: Path
    # What to learn: text in UTF-8; or, by the name's end, JSON lines (.jsonl, .ndjson, .json) or an
    # array (.json). Needed wherever something is trained.
    train_data: Path | None = None
    # Adapter to write: a GGUF for llama.cpp; by the name's end a ggla file (.bin), or a folder of
    # PEFT (no ending). The best one by validation loss goes to NAME-best beside it.
    lora_out: Path = Path("adapter.gguf")
    # At the end, write the model with the adapter worked in as well (GGUF).
    model_out: Path | None = None
    # Type of the tensors of model-out, as F32, F16 or Q8_0; by default each keeps that of the
    # base.
    model_out_type: str | None = None
    # Train nothing: write the adapter of the checkpoint, and end.
    only_write_lora: bool = False
    # Added to the mean square in each norm; by default as the model says.
    norm_rms_eps: float | None = None
    # Base of the rotation of positions; by default as the model says.
    rope_freq_base: float | None = None
    # Factor of positions before they are rotated; by default as the model says.
    rope_freq_scale: float | None = None
    # Chat template for lines with messages, in Jinja, or chatml; by default that of the model. A
    # model that is written gets it.
    chat_template: str | None = None
    # File with the chat template.
    chat_template_file: Path | None = None

    def __post_init__(self) -> None:
        TrainSettings.__post_init__(self)
        LoraSettings.__post_init__(self)
