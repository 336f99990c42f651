"""Where the time of a program goes, counted and printed as llama.cpp does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Share:
    """Time spent on one kind of work, and how many tokens it was."""

    seconds: float = 0.0
    count: int = 0

    @contextmanager
    def measured(self, count: int = 0) -> Iterator[None]:
        """Add the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
            self.count += count


@dataclass
class Timings:
    """Times of loading, sampling, reading prompts and single tokens, and of all together.

    >>> timings = Timings(start=0.0)
    >>> timings.prompt = Share(0.25, 100)
    >>> print(timings.table(now=2.0).splitlines()[2].split(",")[0])
    prompt eval time =     250.00 ms /   100 tokens (    2.50 ms per token
    """

    start: float = field(default_factory=time.perf_counter)
    load: Share = field(default_factory=Share)
    sample: Share = field(default_factory=Share)
    prompt: Share = field(default_factory=Share)
    eval: Share = field(default_factory=Share)

    def table(self, now: float | None = None) -> str:
        """Five lines."""
        whole = (time.perf_counter() if now is None else now) - self.start
        return "\n".join(
            [
                f"{'load time':>16} = {1000 * self.load.seconds:10.2f} ms",
                _line("sample time", self.sample, "runs"),
                _line("prompt eval time", self.prompt, "tokens"),
                _line("eval time", self.eval, "runs"),
                f"{'total time':>16} = {1000 * whole:10.2f} ms / "
                f"{self.prompt.count + self.eval.count:5} tokens",
            ]
        )


def _line(name: str, share: Share, unit: str) -> str:
    ms, count = 1000 * share.seconds, share.count
    per_token = ms / count if count else 0.0
    per_second = count / share.seconds if share.seconds else 0.0
    return (
        f"{name:>16} = {ms:10.2f} ms / {count:5} {unit:6} "
        f"({per_token:8.2f} ms per token, {per_second:8.2f} tokens per second)"
    )
