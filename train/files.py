"""The files that a training run leaves: results, checkpoints, log and loss curve."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from yupana.models.formats import temporary_of, temporary_path
from yupana.train.exchange import put_folder
from yupana.train.loop import History, Keeper
from yupana.train.settings import TrainSettings

Save = Callable[[Path, History], None]


class RunFiles(Keeper):
    """Writes what is learned to `out`, the best by validation loss beside it, and checkpoints.

    In names of what is learned and of checkpoints, the settings' `pattern_fn_it` stands for the
    number of steps; the newest is then also there under the name with `fn_latest` instead. Of
    numbered checkpoints the last `keep_checkpoints` are kept.

    Args:
        settings: names of the other files.
        out: where what is learned goes.
        what: it is, for messages: "model" or "adapter".
        save: writes it, whole or not at all.
        save_checkpoint: writes everything that going on needs, whole or not at all.

    Attributes:
        written: what it is to where it is.
    """

    def __init__(
        self, settings: TrainSettings, out: Path, what: str, save: Save, save_checkpoint: Save
    ) -> None:
        self.settings, self.out, self.what = settings, out, what
        self._save, self._save_checkpoint = save, save_checkpoint
        self.written: dict[str, Path] = {}

    def make_folders(self) -> None:
        """Make the folders that the files go to; what killed runs left half written is removed."""
        checkpoint = self.settings.checkpoint_out or self.out
        for path in (self.out, self.best_path, self.log_path, self.curve_path, checkpoint):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._clear(path)

    def _clear(self, path: Path) -> None:
        """Remove temporary files that were to become this one, under any number."""
        pattern, latest = self.settings.pattern_fn_it, re.escape(self.settings.fn_latest)
        parts = path.name.split(pattern) if pattern else [path.name]
        own = re.compile(rf"(\d+|{latest})".join(map(re.escape, parts)))
        for found in [*path.parent.iterdir()]:
            if own.fullmatch(temporary_of(found) or ""):
                _remove(found)
            elif own.fullmatch(found.name) and found.is_dir():
                for inner in filter(temporary_of, [*found.iterdir()]):
                    _remove(inner)

    @property
    def log_path(self) -> Path:
        """Where the log goes."""
        return self.settings.log_out or self._latest(self.out).with_suffix(".jsonl")

    @property
    def curve_path(self) -> Path:
        """Where the picture of the loss goes."""
        return self.settings.curve_out or self._latest(self.out).with_suffix(".svg")

    @property
    def places(self) -> dict[str, Path]:
        """Where everything goes, the newest where files are numbered; what it is to its path."""
        places = {
            self.what: self._latest(self.out),
            f"best {self.what}": self.best_path,
            "loss curve": self.curve_path,
        }
        if self.settings.checkpoint_out is not None:
            places["checkpoint"] = self._latest(self.settings.checkpoint_out)
        return places

    @property
    def best_path(self) -> Path:
        """Where the best goes."""
        latest = self._latest(self.out)
        return latest.with_name(f"{latest.stem}-best{latest.suffix}")

    def save_best(self, history: History) -> None:
        """Write what is learned to the file of the best."""
        with _naming(self.best_path):
            self._save(self.best_path, history)
        self.written[f"best {self.what}"] = self.best_path

    def save_last(self, history: History) -> None:
        """Write what is learned, and the checkpoint if one is wanted."""
        out = self._numbered(self.out, history, self._save)
        self.written[self.what] = out
        self.kept = f"The {self.what} as it was after step {history.step} is in {out}"
        if self.settings.checkpoint_out is not None:
            path = self._numbered(self.settings.checkpoint_out, history, self._save_checkpoint)
            self.written["checkpoint"] = path
            self.kept += f", its checkpoint in {path}"
            self._prune(self.settings.checkpoint_out)
        self.kept += "."

    def draw(self, history: History) -> None:
        """Write the loss curve, if there is one."""
        # Here, since it loads graphviz, which the start of a run need not wait for.
        from yupana.train.curve import draw_curve

        if not history.losses:
            return
        series = {"training": history.losses, "validation": history.validation}
        draw_curve(self.curve_path, {name: s for name, s in series.items() if s}, "loss by step")
        self.written["loss curve"] = self.curve_path
        self.written["log"] = self.log_path

    def _latest(self, path: Path) -> Path:
        return self._with(path, self.settings.fn_latest)

    def _with(self, path: Path, text: str) -> Path:
        pattern = self.settings.pattern_fn_it
        return path.with_name(path.name.replace(pattern, text)) if pattern else path

    def _numbered(self, path: Path, history: History, save: Save) -> Path:
        """Save under the number of steps, and as the latest; returns the latest."""
        target, latest = self._with(path, str(history.step)), self._latest(path)
        with _naming(target):
            save(target, history)
        if latest != target:
            with _naming(latest):
                _duplicate(target, latest)
        return latest

    def _prune(self, path: Path) -> None:
        """Remove all numbered checkpoints but the newest few."""
        keep, pattern = self.settings.keep_checkpoints, self.settings.pattern_fn_it
        if not keep or not pattern or pattern not in path.name:
            return
        before, _, behind = path.name.partition(pattern)
        name = re.compile(rf"{re.escape(before)}(\d+){re.escape(behind.replace(pattern, ''))}")
        numbers = [(int(found[1]), p) for p in path.parent.iterdir()
                   if (found := name.fullmatch(p.name))]  # fmt: skip
        for _, old in sorted(numbers)[:-keep]:
            _remove(old)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file that is meant, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _duplicate(source: Path, target: Path) -> None:
    """Make `target` the same file or folder as `source`; it is never half of it."""
    temporary = temporary_path(target)
    try:
        if source.is_dir():
            shutil.copytree(source, temporary)
            if old := put_folder(temporary, target):
                _remove(old)
            return
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    """Remove a file or folder, if the system lets us."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # somebody else was quicker
            path.unlink()
