"""`yupana cost`: what a training run will take, before it has any memory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yupana.graphlib.budget import Checkpoints
from yupana.graphlib.config import config
from yupana.graphlib.context import Context
from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.errors import SettingError
from yupana.graphlib.memory import CLASSES
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import read_config
from yupana.train.bill import Bill, make_bill
from yupana.train.model_settings import ModelSettings
from yupana.train.optimiser import AdamWSettings
from yupana.train.run import record_step
from yupana.train.settings import auto


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Say what a training run will take: bytes, FLOPs, seconds per step."""

    # Tokens in the vocabulary.
    n_vocab: int = 1024
    # Take the sizes from this model file instead.
    model: Path | None = None
    # Print JSON instead of a table.
    json: bool = False


def run(settings: Settings) -> int:
    """Print the bill with results kept, some and most computed again; returns the exit code."""
    model = _config(settings)
    ways: dict[str, Checkpoints] = {"all kept": None, "auto": auto(), "checkpointing": "sqrt"}
    bills = {name: bill_of(model, settings, way) for name, way in ways.items()}
    n_tokens = settings.batch * model.n_ctx
    n_parameters = Llama(model, Context(no_alloc=True)).n_parameters
    if settings.json:
        values: dict[str, Any] = {name: asdict(bill) for name, bill in bills.items()}
        for value in values.values():
            value["tokens_per_s"] = n_tokens / value["seconds"]
        print(json.dumps({"parameters": n_parameters, **values}, indent=1))
        return 0
    threads = settings.n_threads or config.threads
    print(
        f"model of {n_parameters:,} parameters: vocabulary {model.n_vocab}, {model.n_layer} layers "
        f"of width {model.n_embd}, {model.n_head} heads"
    )
    print(
        f"step of {settings.batch} windows of {model.n_ctx} tokens with AdamW, "
        f"{threads} thread{'s' if threads > 1 else ''}\n"
    )
    print(_table(bills, n_tokens))
    return 0


def bill_of(model: LlamaConfig, settings: ModelSettings, checkpoints: Checkpoints = None) -> Bill:
    """Record and plan a training step without memory, and add up what it takes.

    >>> model = LlamaConfig(n_vocab=65, n_ctx=8, n_embd=16, n_head=2, n_layer=1)
    >>> bill = bill_of(model, ModelSettings(batch=2, threads=1))
    >>> bill.peak >= bill.lower_bound, bill.by_class["weights"] > 4 * 65 * 16 * 2
    (True, True)
    """
    empty = Llama(model, Context(no_alloc=True))
    step = record_step(empty, settings.batch, AdamWSettings(), checkpoints)
    return make_bill(step, threads=settings.n_threads)


def _config(settings: Settings) -> LlamaConfig:
    if settings.batch < 1:
        raise SettingError(f"cost: batch: got {settings.batch}, want at least 1.")
    if settings.model is None:
        return settings.config(settings.n_vocab)
    with GgufFile(settings.model) as file:
        return read_config(file)


def _table(bills: dict[str, Bill], n_tokens: int) -> str:
    rows: list[tuple[str, list[str]]] = [("", list(bills))]
    every = list(bills.values())
    for name in CLASSES:
        rows.append((name, [format_bytes(b.by_class[name]) for b in every]))
    rows += [
        ("peak of results", [format_bytes(b.peak) for b in every]),
        ("  no less than", [format_bytes(b.lower_bound) for b in every]),
        ("memory in all", [format_bytes(b.total) for b in every]),
        ("GFLOP per step", [f"{b.flops / 1e9:.3g}" for b in every]),
        ("ms per step", [f"{b.seconds * 1e3:.3g}" for b in every]),
        ("tokens per second", [f"{n_tokens / b.seconds:,.0f}" for b in every]),
    ]
    return "\n".join(
        f"{name:18}" + "".join(f"{cell:>15}" for cell in cells) for name, cells in rows
    )
