"""`yupana cost`: what a training run will take, before it has any memory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from yupana.graphlib.budget import Checkpoints
from yupana.graphlib.config import config
from yupana.graphlib.context import Context
from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.errors import SettingError, require
from yupana.graphlib.memory import CLASSES
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama
from yupana.models.llama_gguf import read_config
from yupana.train.bill import Bill, make_bill
from yupana.train.given import Given, as_paths
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings
from yupana.train.model_settings import OF_CONFIG, ModelSettings
from yupana.train.opened import adapt, load_base
from yupana.train.run import record_step
from yupana.train.settings import FinetuneSettings, TrainSettings, auto

WAYS: dict[str, Checkpoints] = {"all kept": None, "auto": auto(), "checkpointing": "sqrt"}
_NAMES = {"adamw": "AdamW", "sgd": "plain gradient descent", "lbfgs": "L-BFGS"}


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings, LoraSettings, Given):
    """Say what a training run will take: bytes, FLOPs, seconds per step."""

    # Tokens in the vocabulary.
    n_vocab: int = 1024
    # Take the sizes from this model file instead, the context too if none is given. With a rank or
    # whole weights it is the base, and the bill that of `yupana finetune`, whose context is 128 if
    # none is given.
    model: Path | None = None
    # Rank of the pairs of an adapter for the model; 0: none, where no other rank says else.
    lora_r: int = 0
    # Batches whose gradients are added up for one step.
    grad_acc: int = 1
    # What takes the step.
    optimizer: Annotated[Literal["adamw", "sgd", "lbfgs"], arg(aliases=["-opt"])] = "adamw"
    # Attention in one op, without the matrix of all scores; off: as separate nodes.
    use_flash: bool = True
    # What larger matrix products multiply: float32, or that rounded to bf16.
    matmul: Literal["f32", "bf16"] = "f32"
    # Print JSON instead of a table.
    json: bool = False

    def __post_init__(self) -> None:
        as_paths(self)
        LoraSettings.__post_init__(self)

    @property
    def is_finetuning(self) -> bool:
        """Whether a model of a file is adapted."""
        return self.has_pairs or bool(self.train_whole)


@dataclass(frozen=True)
class Costs:
    """The bills of one run by the ways to keep results, and what the run is."""

    model: Llama
    n_trained: int
    bills: dict[str, Bill]


def run(settings: Settings) -> int:
    """Print the bill with results kept, some and most computed again; returns the exit code."""
    costs = costs_of(settings)
    c, bills = costs.model.config, costs.bills
    n_tokens = settings.batch * settings.grad_acc * c.n_ctx
    n_parameters = costs.model.n_parameters
    if settings.json:
        values: dict[str, Any] = {name: asdict(bill) for name, bill in bills.items()}
        for value in values.values():
            value["tokens_per_s"] = n_tokens / value["seconds"]
        sizes = {"parameters": n_parameters, "trained": costs.n_trained, "ctx": c.n_ctx}
        print(json.dumps({**sizes, **values}, indent=1))
        return 0
    threads = settings.n_threads or config.threads
    trained = f", {costs.n_trained:,} trained" if settings.is_finetuning else ""
    print(
        f"model of {n_parameters:,} parameters{trained}: vocabulary {c.n_vocab}, {c.n_layer} "
        f"layers of width {c.n_embd}, {c.n_head} heads"
    )
    print(
        f"step of {settings.batch * settings.grad_acc} windows of {c.n_ctx} tokens with "
        f"{_NAMES[settings.optimizer]}, {threads} thread{'s' if threads > 1 else ''}\n"
    )
    print(_table(bills, n_tokens))
    return 0


def costs_of(settings: Settings) -> Costs:
    """Record and plan a training step in each way, without memory; add up what it takes.

    Raises:
        SettingError: settings out of range, or that do not go together. FileFormatError, OSError:
            the model cannot be read.

    >>> sizes = {"ctx": 8, "embd": 16, "head": 2, "layer": 1, "batch": 2, "threads": 1}
    >>> bill = costs_of(Settings(n_vocab=65, **sizes)).bills["all kept"]
    >>> bill.peak >= bill.lower_bound, bill.by_class["weights"] > 4 * 65 * 16 * 2
    (True, True)
    """
    for name in ("ctx", "batch", "grad_acc"):
        require("cost", name, getattr(settings, name), getattr(settings, name) >= 1, "at least 1")
    if settings.model is None:
        if settings.is_finetuning:
            raise SettingError(
                "cost: model: got none with a rank or train_whole, want the model to adapt. Pass "
                "--model FILE."
            )
        return _costs(settings, Llama(settings.config(settings.n_vocab), Context(no_alloc=True)))
    _check_sizes(settings)
    with GgufFile(settings.model) as file:
        if not settings.is_finetuning:
            sizes = read_config(file)
            n_ctx = settings.ctx if "ctx" in settings.given else sizes.n_ctx
            return _costs(settings, Llama(replace(sizes, n_ctx=n_ctx), Context(no_alloc=True)))
        shared = {f.name: getattr(settings, f.name) for f in fields(LoraSettings)}
        how = FinetuneSettings(model_base=settings.model, ctx=settings.ctx, **shared)
        model, adapter, _ = adapt(load_base(file), how, 0, no_alloc=True)
        return _costs(settings, model, adapter)


def _costs(settings: Settings, model: Llama, adapter: TrainedAdapter | None = None) -> Costs:
    optimiser = TrainSettings(optimizer=settings.optimizer).optimiser()
    steps = {
        name: record_step(
            model,
            settings.batch,
            optimiser,
            way,
            settings.grad_acc,
            adapter=adapter,
            flash=settings.use_flash,
            matmul=settings.matmul,
        )
        for name, way in WAYS.items()
    }
    apart = adapter.parameters.values() if adapter else ()
    bills = {
        name: make_bill(step, threads=settings.n_threads, adapter=apart)
        for name, step in steps.items()
    }
    n_trained = sum(param.size for param in steps["auto"].params)
    return Costs(model, n_trained, bills)


def _check_sizes(settings: Settings) -> None:
    """Refuse sizes beside a model that has its own."""
    names = [name for name in (*OF_CONFIG, "n_vocab") if name in settings.given and name != "ctx"]
    if names:
        raise SettingError(
            f"cost: {names[0]}: got it with model {settings.model}, want one of the two: the file "
            "says which sizes the model has."
        )


def _table(bills: dict[str, Bill], n_tokens: int) -> str:
    rows: list[tuple[str, list[str]]] = [("", list(bills))]
    every = list(bills.values())
    for name in every[0].by_class:
        if name in CLASSES or any(b.by_class[name] for b in every):
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
