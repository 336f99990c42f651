"""`yupana perplexity`: how well a model foresees a text."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from yupana.inference import ModelFlags, open_model, say
from yupana.models.perplexity import Estimate, perplexity
from yupana.models.text_files import read_file
from yupana.models.timings import Timings


@dataclass(frozen=True, kw_only=True)
class Settings(ModelFlags):
    """Measure the perplexity of a model on a text, as llama.cpp does.

    The text is read in chunks of one context. Tokens in the second half of each are counted, so
    that each has at least half a context before it.
    """

    # Text file.
    file: Annotated[Path, arg(aliases=["-f"])]
    # Tokens of a chunk.
    ctx_size: Annotated[int, arg(aliases=["-c"])] = 512
    # Chunks to read at most; -1: all.
    chunks: int = -1
    # Show at the end where the time went.
    perf: bool = True


def run(settings: Settings) -> int:
    """Print an estimate after each chunk, and the last one with its error."""
    s, timings = settings, Timings()
    with timings.load.measured():
        text = read_file(s.file)
        model = open_model(s)
        tokenizer = model.tokenizer
        ids = tokenizer.encode(text)
        session = model.session(
            n_ctx=s.ctx_size, n_batch=s.batch_size, cache=s.cache_type, threads=s.threads or None
        )
        bos = tokenizer.bos if tokenizer.add_bos else None
        estimates = perplexity(session, ids, s.ctx_size, bos, s.chunks)
    wanted = len(ids) // s.ctx_size
    wanted = wanted if s.chunks < 0 else min(s.chunks, wanted)
    say(f"perplexity of {wanted} chunks of {s.ctx_size} tokens, {len(ids)} tokens in all")
    last: Estimate | None = None
    line = Line()
    before = time.perf_counter()
    with timings.prompt.measured(wanted * s.ctx_size):
        for last in estimates:
            now = time.perf_counter()
            if last.chunk == min(2, wanted):  # the first one waits for kernels
                seconds = now - before
                say(f"{seconds:.2f} seconds per chunk, {seconds * wanted / 60:.2f} minutes in all")
            before = now
            line.add(f"[{last.chunk}]{last.perplexity:.4f},")
    print()
    assert last is not None  # there is a chunk, or `perplexity` had refused
    print(f"Final estimate: PPL = {last.perplexity:.4f} +/- {last.error:.5f}")
    if s.perf:
        say(f"\n{timings.table()}")
    return 0


class Line:
    """Words one after the other, broken where a terminal ends."""

    def __init__(self) -> None:
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        self._used = 0

    def add(self, word: str) -> None:
        """Write a word now."""
        if self._width and self._used and self._used + len(word) > self._width:
            print()
            self._used = 0
        print(word, end="", flush=True)
        self._used += len(word)
