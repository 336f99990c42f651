"""The training loop: steps, evaluations, what is kept, and how a run ends."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yupana.graphlib.errors import NonFiniteError, require
from yupana.train.data import Batches
from yupana.train.interrupt import CtrlC
from yupana.train.log import Log, peak_bytes
from yupana.train.progress import Display, Silent, Status
from yupana.train.schedule import Schedule
from yupana.train.step import Evaluation, Step
from yupana.train.stop import StopRules, StopState, after_step, after_validation
from yupana.train.writing import Writing

_SMOOTHING = 0.9  # share of the old value in the running loss and rate


@dataclass(frozen=True)
class LoopSettings:
    """How long to train, and when to look and to save.

    Raises:
        SettingError: a setting outside its range.
    """

    # Updates in all, those before a resumed run included.
    steps: int = 256
    # Updates between two evaluations; 0: at the end only.
    eval_every: int = 50
    # Updates between two saves of the newest state; 0: at the end only.
    save_every: int = 10
    # Updates between two texts that the model writes; 0: none.
    generate_every: int = 0
    # What may end the run before.
    rules: StopRules = field(default_factory=StopRules)

    def __post_init__(self) -> None:
        rules = (("steps", 1), ("eval_every", 0), ("save_every", 0), ("generate_every", 0))
        for name, least in rules:
            value = getattr(self, name)
            require("train", name, value, value >= least, f"at least {least}")


@dataclass
class History:
    """The course of a run; what a resumed run starts from."""

    step: int = 0  # updates done
    best: float = float("inf")  # lowest validation loss so far
    stop: StopState = field(default_factory=StopState)
    rows: int = 0  # of data that the updates were made from
    losses: list[tuple[float, float]] = field(default_factory=list)  # (step, loss)
    validation: list[tuple[float, float]] = field(default_factory=list)


def read_history(path: Path, step: int, best: float, stop: StopState | None = None) -> History:
    """The course of a run up to `step`, from its log, as far as that is there.

    Steps that were made again after a resume stand in the log twice: the later ones count.
    """
    history = History(step, best, stop or StopState())
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line, or not ours
            entry = json.loads(line)
            name = "validation" if "validation" in entry else "loss"
            point = float(entry["step"]), float(entry[name])
            points = history.validation if name == "validation" else history.losses
            while points and points[-1][0] >= point[0]:
                points.pop()
            if point[0] <= step:
                points.append(point)
    return history


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    history: History
    interrupted: bool  # by Ctrl-C; all was saved
    seconds: float
    reason: str = ""  # for which the run ended before its last step, if none of these


class Keeper:
    """Writes what a run leaves; this one writes nothing.

    Attributes:
        kept: says where the newest good state is; for messages.
    """

    kept = ""

    def save_best(self, history: History) -> None:
        """The validation loss has never been so low."""

    def save_last(self, history: History) -> None:
        """Time to write the newest state: at the start, now and then, and when the run ends."""


class Loop:
    """Trains until the steps are done, a rule to stop, Ctrl-C, or a value that is not finite.

    Args:
        step: the compiled training step.
        batches: training data.
        schedule: of the learning rate.
        settings: see `LoopSettings`.
        evaluation: of the validation loss; None: there is none.
        writing: of texts for the log; None: there are none.
        keeper: writes models.
        log: gets a line per step and per evaluation.
        display: shows how it goes.
        history: of an earlier run, to go on from.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        schedule: Schedule,
        settings: LoopSettings,
        *,
        evaluation: Evaluation | None = None,
        writing: Writing | None = None,
        keeper: Keeper | None = None,
        log: Log | None = None,
        display: Display | None = None,
        history: History | None = None,
    ) -> None:
        self.step, self.batches, self.schedule = step, batches, schedule
        self.settings, self.evaluation, self.writing = settings, evaluation, writing
        self.keeper, self.log = keeper or Keeper(), log or Log(None)
        self.display = display or Silent()
        self.history = history or History()
        self._status = Status(self.history.step, settings.steps)
        self._status.epoch = batches.epochs(self.history.step)
        self._batch = batches.at(self.history.step)
        self._saved = -1  # step of the newest save
        self._written = -1  # step of the newest text
        self._busy_s = 0.0  # in training steps alone

    def run(
        self,
        stop: Callable[[], bool] | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Train; Ctrl-C finishes the step, saves, and returns with `interrupted` set.

        Args:
            stop: asked after each step; True ends the run as Ctrl-C does.
            record: what the log says of the run, before its steps.

        Raises:
            NonFiniteError: a step or an evaluation gave values that are not finite. What is
                written then is the newest state that gave a finite loss.
            OSError: the system cannot write; what was written before is as it was.
        """
        start = time.monotonic()
        try:
            with CtrlC() as ctrl_c, self.display:
                self._save()
                if record is not None:
                    self.log.write(self.history.step, run=record)
                interrupted, reason = self._steps(lambda: ctrl_c.asked or bool(stop and stop()))
                self._save()
        except NonFiniteError as error:
            with contextlib.suppress(NonFiniteError):
                self._save()
            raise NonFiniteError(f"{error} {self.keeper.kept}".rstrip()) from None
        except OSError as error:  # a full disk, say
            said = f"{error.strerror or error}. {self.keeper.kept}".rstrip(" .") + "."
            raise OSError(error.errno, said, error.filename) from None
        return Outcome(self.history, interrupted, time.monotonic() - start, reason)

    def _steps(self, is_asked: Callable[[], bool]) -> tuple[bool, str]:
        """Train to the end; returns whether somebody asked to stop, and a rule's reason to."""
        history, settings = self.history, self.settings
        first, start = history.step, time.monotonic()
        second = start  # when the second step of these begins
        if first == 0:
            self._write()  # what it could say before
        while history.step < settings.steps:
            loss = self._train_once()
            now = time.monotonic()
            spent, done = now - start, history.step - first
            if done == 1:
                second = now  # before it, kernels are compiled or loaded
            each = (now - second) / (done - 1) if done > 1 else self._busy_s
            self._status.left_s = each * (settings.steps - history.step)
            self.display.show(self._status)
            reason = after_step(settings.rules, history.stop, loss, spent)
            last = history.step == settings.steps
            if last or reason or _is_due(history.step, settings.eval_every):
                reason = self._evaluate() or reason
            if last or reason or _is_due(history.step, settings.generate_every):
                self._write()
            if is_asked():
                return not last, ""
            if _is_due(history.step, settings.save_every):
                self._save()
            if reason and not last:
                return False, reason
        return False, ""

    def _train_once(self) -> float:
        history, status = self.history, self._status
        number = history.step
        factor = self.schedule.factor(number)
        self._batch = batch = self.batches.at(number)
        start = time.perf_counter()
        result = self.step.run(batch, number, factor)
        seconds = time.perf_counter() - start
        history.step = number + 1
        history.rows += len(batch[0])
        history.losses.append((history.step, result.loss))
        first = math.isnan(status.loss)  # nothing shown yet
        old = 0.0 if first else _SMOOTHING
        status.step = history.step
        status.epoch = self.batches.epochs(history.step)
        status.loss = old * (0.0 if first else status.loss) + (1 - old) * result.loss
        # The first step loads what it needs and says little about the others.
        self._busy_s = old * self._busy_s + (1 - old) * seconds
        status.tokens_per_s = batch[0].size / self._busy_s
        self.log.write(
            step=history.step,
            epoch=round(status.epoch, 4),
            loss=result.loss,
            norm=result.norm,
            rate=self.step.rate(factor),
            seconds=round(seconds, 6),
            tokens_per_s=round(batch[0].size / seconds, 1),
            planned_bytes=self.step.program.plan.total,
            peak_bytes=peak_bytes(),
        )
        return result.loss

    def _evaluate(self) -> str | None:
        """Look at the validation loss; returns a reason to stop, if it gives one."""
        if self.evaluation is None:
            return None
        history = self.history
        loss = self.evaluation.run()
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"train: the validation loss turned non-finite after step {history.step}: got "
                f"{loss}, want a finite loss. Lower the learning rate."
            )
        history.validation.append((history.step, loss))
        self._status.validation = loss
        self.log.write(step=history.step, validation=loss)
        self.display.show(self._status)
        self.display.tell(
            f"step {history.step}: loss {self._status.loss:.3f}, validation {loss:.3f}"
        )
        is_best = loss < history.best
        if is_best:
            history.best = loss
            self.keeper.save_best(history)
        if not _is_due(history.step, self.settings.eval_every):
            return None  # at the end alone: a run that goes on would not have looked here
        return after_validation(self.settings.rules, history.stop, is_best)

    def _write(self) -> None:
        """Let the model write a text to the log."""
        step = self.history.step
        if self.writing is None or self._written == step:
            return
        prompt, text = self.writing.text()
        self.log.write(step=step, prompt=prompt, text=text)
        self._written = step

    def _save(self) -> None:
        """Write the newest state, unless it gives values that are not finite."""
        history = self.history
        if self._saved == history.step:
            return
        # On the batch of the last step, or of the one that failed.
        if not self.step.is_finite(self._batch):
            raise NonFiniteError(
                f"train: the parameters turned non-finite in step {history.step}: got a loss or a "
                "parameter that is NaN or infinite, want all finite. Lower the learning rate."
            )
        self.keeper.save_last(history)
        self._saved = history.step


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
