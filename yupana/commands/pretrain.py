"""`yupana pretrain`: train a small LLaMA from scratch on a text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from yupana.models.vocabulary import Vocabulary
from yupana.train.loop import Outcome
from yupana.train.pretrain import Pretraining, prepare, write_model
from yupana.train.progress import Display, clock, make_display
from yupana.train.run import Run
from yupana.train.settings import PretrainSettings

Settings = PretrainSettings


def run(settings: PretrainSettings) -> int:
    """Train; returns the exit code."""
    if settings.only_write_model:
        show_files({"model": write_model(settings)})
        return 0
    display = make_display()
    pretraining = prepare(settings.source, settings, display)
    introduce(pretraining, display)
    outcome = pretraining.train()
    conclude(pretraining, outcome)
    return 130 if outcome.interrupted else 0


def introduce(pretraining: Pretraining, display: Display) -> None:
    """Say what is going to be trained, on what."""
    p = pretraining
    c = p.model.config
    kind = p.vocabulary.kind if isinstance(p.vocabulary, Vocabulary) else "of a model file"
    display.tell(
        f"vocabulary of {len(p.vocabulary):,} tokens ({kind}), "
        f"{p.data.training.n_tokens:,} tokens to learn from"
    )
    for note in p.data.notes:
        display.tell(note)
    display.tell(
        f"model of {p.model.n_parameters:,} parameters: {c.n_layer} layers of width {c.n_embd}, "
        f"context {c.n_ctx}"
    )
    tell_bill(p, display)


def tell_bill(run: Run, display: Display) -> None:
    """Say what the run is going to take."""
    threads = run.step.program.threads
    display.tell(f"on {threads} thread{'s' if threads > 1 else ''}, before the first step:")
    for line in run.bill.table().splitlines():
        display.tell(line)


def conclude(run: Run, outcome: Outcome) -> None:
    """Say how it ended, and where everything is."""
    history = outcome.history
    if history.losses:
        recent = [loss for _, loss in history.losses[-20:]]
        checked = f", validation {history.validation[-1][1]:.3f}" if history.validation else ""
        print(
            f"{history.step} steps in {clock(outcome.seconds)}, epoch "
            f"{run.loop.batches.epochs(history.step):.2f}: "
            f"loss {sum(recent) / len(recent):.3f}{checked}"
        )
    if outcome.reason:
        print(f"ended before the last step: {outcome.reason}")
    elif history.step >= run.loop.settings.steps:
        print(f"ended after the last step: {run.limit}")
    if outcome.interrupted:
        print("interrupted; everything was written after the step was finished", file=sys.stderr)
    written = run.files.written
    show_files(written)
    if "log" in written and "report" not in written:
        print(f"`yupana report {shlex.quote(str(written['log']))}` makes one page of all this")


def show_files(written: Mapping[str, Path]) -> None:
    """List files: what each is, and where."""
    width = max(map(len, written), default=0)
    for what, path in written.items():
        print(f"  {what:{width}}  {path}")
