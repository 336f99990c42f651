"""`yupana demo`: the main job from end to end, with nothing to fetch."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from yupana.commands.pretrain import conclude, introduce
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.session import Session
from yupana.models.vocabulary import Vocabulary
from yupana.models.writer import Writer
from yupana.train.pretrain import Pretraining, prepare
from yupana.train.progress import make_display
from yupana.train.report import make_report
from yupana.train.settings import RunSettings
from yupana.train.text import documentation_text


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train a small LLaMA on the text of Python's own documentation, and let it write.

    It leaves the model, a report, the loss curve and pictures of graph and memory in one folder.
    """

    # Folder to write to.
    out: Path = Path("yupana-demo")
    # Training steps.
    steps: int = 1200
    # Text that the model continues at the end.
    prompt: str = "The following"
    # Tokens it adds.
    n_predict: int = 160
    # Seed of the weights, the choice of windows, and the text written.
    seed: int = 1337
    # Threads; 0: as many as there are cores.
    threads: int = 0


def run(settings: Settings) -> int:
    """Train, generate, draw; returns the exit code."""
    display = make_display()
    pretraining = prepare(documentation_text(), run_settings(settings), display)
    introduce(pretraining, display)
    outcome = pretraining.train()
    draw_pictures(pretraining, settings.out)
    if not outcome.interrupted:
        write_text(pretraining, settings)
        written = pretraining.files.written
        written["report"] = make_report(pretraining.files.log_path, settings.out / "report.html")
    conclude(pretraining, outcome)
    return 130 if outcome.interrupted else 0


def run_settings(settings: Settings) -> RunSettings:
    """What `yupana pretrain` would have to be told."""
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
        warmup=min(50, settings.steps // 4),
        cos_decay_steps=max(1, settings.steps - min(50, settings.steps // 4)),
        eval_every=max(1, settings.steps // 12),
        generate_every=max(1, settings.steps // 6),
        generate_prompt=settings.prompt,
        save_every=0,
    )


def write_text(pretraining: Pretraining, settings: Settings) -> None:
    """Let the model write, and show it."""
    vocabulary = pretraining.vocabulary
    assert isinstance(vocabulary, Vocabulary)  # learned from the text
    session = Session(pretraining.model, threads=settings.threads or None)
    writer = Writer(session, Sampler(Sampling(temp=0.7)), RandomStream(settings.seed))
    writer.read(vocabulary.encode(settings.prompt).tolist())
    session.prepare(len(writer.pending))  # what is compiled is said before the text, not in it
    text = vocabulary.stream()
    print(f"\n{settings.prompt}", end="")
    for _ in range(settings.n_predict):
        token = writer.draw()
        if token is None or token == vocabulary.end:
            break
        print(text.feed(token), end="", flush=True)
    print(f"{text.close()}\n")


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
