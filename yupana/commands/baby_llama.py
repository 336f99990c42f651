"""`yupana baby-llama`: ggml's sine-wave task."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from yupana.graphlib.errors import SettingError
from yupana.models.baby_llama import (
    N_BATCH,
    N_EXAMPLES,
    BabyLlama,
    baby_config,
    draw_token,
    generate_wave,
)
from yupana.train.interrupt import CtrlC
from yupana.train.lbfgs import LbfgsSettings
from yupana.train.waves import SETTINGS, Search, WaveTrainer

_SHOW_EVERY = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train ggml's baby-llama on sine waves by L-BFGS, then let it draw one."""

    # Train the factored variant: attention and output matrices as products of two.
    lora: bool = False
    # Inner size of those products.
    n_lora: int = 64
    # Tokens, the heights of a wave.
    n_vocab: int = 8
    # Tokens of context.
    n_ctx: int = 8
    # Width of the residual stream.
    n_embd: int = 32
    # The feed-forward width is rounded up to a multiple of this.
    n_mult: int = 2
    # Attention heads.
    n_head: int = 8
    # Heads of keys and values; 0: as many as heads.
    n_head_kv: int = 0
    # Transformer blocks.
    n_layer: int = 1
    # Waves per example.
    n_batch: int = N_BATCH
    # Examples, each trained on by a search of its own.
    n_examples: int = N_EXAMPLES
    # Pairs of steps and gradient changes that a search remembers.
    m: int = SETTINGS.m
    # Iterations per search.
    n_iter: int = SETTINGS.n_iter
    # Tokens drawn at the end.
    n_gen: int = 128
    # Seed of the weights.
    seed: int = 1337
    # Threads; 1 is best for a model this small.
    threads: int = 1


def run(settings: Settings) -> int:
    """Train, draw a wave, and say what the errors were; returns the exit code."""
    s = settings
    for name in ("n_examples", "n_batch", "threads"):
        if getattr(s, name) < 1:
            raise SettingError(f"baby-llama: {name}: got {getattr(s, name)}, want at least 1.")
    config = baby_config(
        n_vocab=s.n_vocab,
        n_ctx=s.n_ctx,
        n_embd=s.n_embd,
        n_mult=s.n_mult,
        n_head=s.n_head,
        n_layer=s.n_layer,
        n_head_kv=s.n_head_kv,
    )
    model = BabyLlama(config, s.n_lora if s.lora else None).init(s.seed)
    trainer = WaveTrainer(model, s.n_batch, LbfgsSettings(m=s.m, n_iter=s.n_iter), s.threads)
    done: list[Search] = []
    with CtrlC("finishing this example; Ctrl-C again stops at once") as ctrl_c:
        for search in trainer.train(s.n_examples):
            done.append(search)
            if search.number % _SHOW_EVERY == 0:
                print(
                    f"example {search.number:3}: error before {search.before:9.3f}, "
                    f"after {search.after:9.3f}",
                    flush=True,
                )
            if ctrl_c.asked:
                break
    if not ctrl_c.asked:
        for token in generate_wave(model, s.n_gen):
            print(draw_token(token, s.n_vocab))
    n = len(done)
    before, after = sum(x.before for x in done) / n, sum(x.after for x in done) / n
    print(f"mean error over {n} examples: before {before:.1f}, after {after:.1f}")
    if ctrl_c.asked:
        print("interrupted; this program writes no files", file=sys.stderr)
        return 130
    return 0
