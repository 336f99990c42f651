"""`yupana finetune`: train an adapter for a model file."""

from __future__ import annotations

from yupana.commands.pretrain import conclude, show_files, tell_bill
from yupana.train.finetune import Finetuning, finetune, write_learned
from yupana.train.progress import Display, make_display
from yupana.train.settings import FinetuneSettings

Settings = FinetuneSettings


def run(settings: FinetuneSettings) -> int:
    """Train; returns the exit code."""
    if settings.only_write_lora:
        show_files(write_learned(settings))
        return 0
    display = make_display()
    finetuning = finetune(settings, display)
    introduce(finetuning, display)
    outcome = finetuning.train()
    conclude(finetuning, outcome)
    return 130 if outcome.interrupted else 0


def introduce(finetuning: Finetuning, display: Display) -> None:
    """Say what is going to be trained, on what."""
    f = finetuning
    c = f.model.config
    types = sorted({w.dtype.name for w in f.model.weights.values() if w.ndim == 2})
    display.tell(
        f"base of {f.model.n_parameters:,} parameters in {', '.join(types)}: {c.n_layer} layers "
        f"of width {c.n_embd}; {f.data.training.n_tokens:,} tokens to learn from"
    )
    for note in f.data.notes:
        display.tell(note)
    trained = sum(p.size for p in f.step.params)
    parts = [f"beside {len(f.adapter.pairs)} weights"] if f.adapter.pairs else []
    parts += [f"in {len(f.whole)} whole weights"] if f.whole else []
    display.tell(f"{trained:,} trained parameters {' and '.join(parts)}, context {c.n_ctx}")
    if any("norm" in name for name in f.adapter.pairs) and f.settings.lora_out.suffix != ".bin":
        display.tell(
            "pairs beside norms: llama.cpp reads them from an adapter and does not apply them; "
            "write a model with --model-out or `yupana export-lora` for it"
        )
    if overridden := f.learned.overridden:
        said = ", ".join(f"{name} {value:g}" for name, value in overridden.items())
        display.tell(
            f"trained with {said} in place of what the base says: adapter files do not hold that; "
            "use the adapter so, or write a model with --model-out, which does"
        )
    tell_bill(f, display)
