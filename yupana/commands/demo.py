"""`yupana demo`: the main job from end to end, with nothing to fetch."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from yupana.commands import finetune as adapting
from yupana.commands.pretrain import conclude, introduce
from yupana.models.language_model import LanguageModel, load
from yupana.models.sampling import Sampling
from yupana.train.finetune import Finetuning, finetune
from yupana.train.pretrain import Pretraining, prepare
from yupana.train.progress import Display, make_display
from yupana.train.python_texts import documentation_text, source_text
from yupana.train.report import make_report
from yupana.train.settings import FinetuneSettings, RunSettings

_TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train a small LLaMA on Python's documentation, then adapt it to program text with LoRA.

    It lets the model write after the first, and before and after the second. Model, adapter,
    reports, loss curves and pictures of graph and memory are left in one folder.
    """

    # Folder to write to.
    out: Path = Path("yupana-demo")
    # Training steps of the model.
    steps: int = 1200
    # Training steps of the adapter; 0: none, and no adapter.
    lora_steps: int = 300
    # Text that the model continues.
    prompt: str = "The following"
    # Text that the model continues without and with the adapter.
    lora_prompt: str = "    def "
    # Tokens it adds.
    n_predict: int = 160
    # Seed of the weights, the choice of windows, and the text written.
    seed: int = 1337
    # Threads; 0: as many as there are cores.
    threads: int = 0


def run(settings: Settings) -> int:
    """Train, write, draw, adapt, write; returns the exit code."""
    display = make_display()
    # All settings are looked at before anything is trained or written.
    pretraining = prepare(documentation_text(), run_settings(settings), display)
    lora = lora_settings(settings) if settings.lora_steps else None
    introduce(pretraining, display)
    outcome = pretraining.train()
    draw_pictures(pretraining, settings.out)
    if outcome.interrupted:
        conclude(pretraining, outcome)
        return 130
    model = load(settings.out / "model.gguf", threads=settings.threads or None)
    write(model, settings.prompt, settings)
    written = pretraining.files.written
    written["report"] = make_report(pretraining.files.places.log_path, settings.out / "report.html")
    conclude(pretraining, outcome)
    return adapt(model, lora, settings, display) if lora else 0


def run_settings(settings: Settings) -> RunSettings:
    """What `yupana pretrain` would have to be told."""
    warmup = min(50, settings.steps // 4)
    return RunSettings(
        model_out=settings.out / "model.gguf",
        curve_out=settings.out / "loss.svg",
        log_out=settings.out / "log.jsonl",
        ctx=96,
        batch=8,
        embd=128,
        ff=344,
        head=4,
        layer=4,
        n_vocab=512,
        checkpointing="none",
        seed=settings.seed,
        threads=settings.threads,
        adam_iter=settings.steps,
        adam_alpha=3e-3,
        adam_beta2=0.99,
        warmup=warmup,
        cos_decay_steps=max(1, settings.steps - warmup),
        eval_every=max(1, settings.steps // 12),
        generate_every=max(1, settings.steps // 6),
        generate_prompt=settings.prompt,
        save_every=0,
    )


def lora_settings(settings: Settings) -> FinetuneSettings:
    """What `yupana finetune` would have to be told.

    Raises:
        SettingError: as the program itself.
    """
    warmup = min(20, settings.lora_steps // 4)
    lora = FinetuneSettings(
        model_base=settings.out / "model.gguf",
        train_data=settings.out / "source.txt",
        lora_out=settings.out / "adapter.gguf",
        lora_r=8,
        ctx=96,
        batch=8,
        checkpointing="none",
        seed=settings.seed,
        threads=settings.threads,
        adam_iter=settings.lora_steps,
        adam_alpha=1e-2,
        adam_beta2=0.99,
        warmup=warmup,
        cos_decay_steps=max(1, settings.lora_steps - warmup),
        eval_every=max(1, settings.lora_steps // 6),
        save_every=0,
    )
    lora.check()
    return lora


def adapt(
    model: LanguageModel, lora: FinetuneSettings, settings: Settings, display: Display
) -> int:
    """Train an adapter on a text of another style, and show what it changes."""
    lora.source.write_text(source_text(), encoding="utf-8")
    display.tell(f"\nthe same model with an adapter (LoRA) learns program text, {lora.source}")
    finetuning = finetune(lora, display)
    adapting.introduce(finetuning, display)
    before = validation(finetuning)
    outcome = finetuning.train()
    written = finetuning.files.written
    if not outcome.interrupted:
        print("\nwithout the adapter:")
        write(model, settings.lora_prompt, settings)
        model.attach(lora.lora_out)
        print("with the adapter:")
        write(model, settings.lora_prompt, settings)
        after = validation(finetuning)
        print(f"validation loss on program text: {before:.3f} before, {after:.3f} with the adapter")
        written["report"] = make_report(
            finetuning.files.places.log_path, settings.out / "adapter.html"
        )
    written["text learned"] = lora.source
    conclude(finetuning, outcome)
    return 130 if outcome.interrupted else 0


def validation(finetuning: Finetuning) -> float:
    """The loss of the model as it is, on what was kept of the second text."""
    evaluation = finetuning.loop.evaluation
    assert evaluation is not None  # a share of the text is kept by default
    return evaluation.run()


def write(model: LanguageModel, prompt: str, settings: Settings) -> None:
    """Let the model continue a text, and show it."""
    sampling = Sampling(temp=_TEMPERATURE)
    # What is compiled is said before the text, not in it.
    text = "".join(model.generate(prompt, settings.n_predict, sampling, settings.seed))
    print(f"\n{prompt}{text}\n")


def draw_pictures(pretraining: Pretraining, folder: Path) -> None:
    """Draw the graph of the training step and its memory plan."""
    from yupana.graphlib.draw import draw_graph, draw_plan  # training need not wait for it

    written = pretraining.files.written
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = pretraining.step
        written["graph"] = draw_graph(step.graph, folder / "graph.svg", title="training step")
    for warning in caught:
        print(f"yupana: {warning.message}", file=sys.stderr)
    written["memory plan"] = draw_plan(
        step.program.plan, folder / "memory.svg", title="memory of a training step"
    )
