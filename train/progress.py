"""What a training run shows: a bar that fits the terminal, or plain lines where there is none."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_EVERY_S = 10.0  # between plain lines
_BAR_FROM = 72  # columns a terminal needs for a bar beside the numbers


@dataclass
class Status:
    """The numbers of a run at one moment."""

    step: int  # updates done
    steps: int  # updates to do
    epoch: float | None = None  # how often the data have been read
    loss: float = float("nan")
    validation: float | None = None
    tokens_per_s: float = 0.0
    left_s: float | None = None

    def line(self, width: int) -> str:
        """As many of the numbers as fit `width` columns, the more important ones first.

        >>> status = Status(50, 800, 1.254, 3.2101, 3.4, 12345.6, 62.0)
        >>> status.line(85)
        'step 50/800  epoch 1.25  loss 3.210  validation 3.400  12,346 tokens/s  1:02 left'
        >>> status.line(30)
        '50/800  3.210  1:02 left'
        """
        wide = [f"step {self.step}/{self.steps}", f"loss {self.loss:.3f}"]
        narrow = [f"{self.step}/{self.steps}", f"{self.loss:.3f}"]
        left = [] if self.left_s is None else [f"{clock(self.left_s)} left"]
        rate = [f"{self.tokens_per_s:,.0f} tokens/s"] if self.tokens_per_s else []
        short_rate = [f"{self.tokens_per_s:,.0f} tok/s"] if self.tokens_per_s else []
        epoch = [] if self.epoch is None else [f"epoch {self.epoch:.2f}"]
        checked, short_checked = [], []
        if self.validation is not None:
            checked, short_checked = (
                [f"validation {self.validation:.3f}"],
                [f"val {self.validation:.3f}"],
            )
        for parts in (
            [wide[0], *epoch, *wide[1:], *checked, *rate, *left],
            [*wide, *checked, *rate, *left],
            [*wide, *short_checked, *short_rate, *left],
            [*narrow, *short_checked, *short_rate, *left],
            [*narrow, *short_checked, *left],
            [*narrow, *left],
            narrow,
        ):
            text = "  ".join(parts)
            if len(text) <= width:
                return text
        return text[:width]


class Display(Protocol):
    """Shows the status of a run; a context manager around it."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, status: Status) -> None:
        """Called after each step."""

    def tell(self, line: str) -> None:
        """A line that stays."""


class Bar:
    """A line that is drawn over and over at the foot of a terminal."""

    def __init__(self, stream: IO[str] | None = None, width: int | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream, width=width, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        from rich.progress import BarColumn, Progress, TextColumn

        text = TextColumn("{task.description}", markup=False)
        columns = [BarColumn(bar_width=None), text] if self._has_bar else [text]
        self._progress = Progress(*columns, console=self._console, refresh_per_second=8)
        self._task = self._progress.add_task("starting")
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def _has_bar(self) -> bool:
        return self._console.width >= _BAR_FROM

    def show(self, status: Status) -> None:
        """Draw the bar anew, at most eight times a second."""
        if self._progress is None or self._task is None:
            return
        room = self._console.width - (14 if self._has_bar else 1)
        self._progress.update(
            self._task,
            total=status.steps,
            completed=status.step,
            description=status.line(room),
        )

    def tell(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, soft_wrap=True)


class Lines:
    """A plain line from time to time: for files, pipes and logs."""

    def __init__(self, stream: IO[str] | None = None, every_s: float = _PLAIN_EVERY_S) -> None:
        self._stream = stream or sys.stdout
        self._every_s = every_s
        self._last, self._step = float("-inf"), -1

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, status: Status) -> None:
        """Print the status if the last line is old enough, or the run is at its end."""
        now = time.monotonic()
        is_due = now - self._last >= self._every_s or status.step == status.steps
        if not is_due or status.step == self._step:
            return
        self._last, self._step = now, status.step
        self.tell(status.line(200))

    def tell(self, line: str) -> None:
        """Print a line."""
        print(line, file=self._stream, flush=True)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, status: Status) -> None:
        """Nothing."""

    def tell(self, line: str) -> None:
        """Nothing."""


def make_display() -> Display:
    """A bar on a terminal, plain lines elsewhere."""
    return Bar() if sys.stdout.isatty() else Lines()


def clock(seconds: float) -> str:
    """A duration as people read it.

    >>> clock(62), clock(3723)
    ('1:02', '1:02:03')
    """
    minutes, s = divmod(max(round(seconds), 0), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
