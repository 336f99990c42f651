"""The files that a training run leaves: results, checkpoints, log and loss curve."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from yupana.models.formats import temporary_path
from yupana.train.exchange import put_folder
from yupana.train.loop import History, Keeper
from yupana.train.places import Places, naming, remove

Save = Callable[[Path, History], None]


class RunFiles(Keeper):
    """Writes what is learned, the best by validation loss beside it, and checkpoints.

    Of numbered files of a name the newest `keep_checkpoints` are kept.

    Args:
        places: where all goes.
        save: writes what is learned, whole or not at all.
        save_checkpoint: writes everything that going on needs, whole or not at all.

    Attributes:
        written: what it is to where it is.
    """

    def __init__(self, places: Places, save: Save, save_checkpoint: Save) -> None:
        self.places = places
        self._save, self._save_checkpoint = save, save_checkpoint
        self.written: dict[str, Path] = {}

    def save_best(self, history: History) -> None:
        """Write what is learned to the file of the best."""
        path = self.places.best_path
        with naming(path):
            self._save(path, history)
        self.written[f"best {self.places.what}"] = path

    def save_last(self, history: History) -> None:
        """Write what is learned, and the checkpoint if one is wanted."""
        what, checkpoint = self.places.what, self.places.settings.checkpoint_out
        out = self._numbered(self.places.out, history, self._save)
        self.written[what] = out
        self.kept = f"The {what} as it was after step {history.step} is in {out}"
        if checkpoint is not None:
            path = self._numbered(checkpoint, history, self._save_checkpoint)
            self.written["checkpoint"] = path
            self.kept += f", its checkpoint in {path}"
        self.kept += "."

    def draw(self, history: History) -> None:
        """Write the loss curve, if there is one."""
        # Here, since it loads graphviz, which the start of a run need not wait for.
        from yupana.train.curve import draw_curve

        if not history.losses:
            return
        series = {"training": history.losses, "validation": history.validation}
        path = self.places.curve_path
        draw_curve(path, {name: s for name, s in series.items() if s}, "loss by step")
        self.written["loss curve"] = path
        self.written["log"] = self.places.log_path

    def _numbered(self, path: Path, history: History, save: Save) -> Path:
        """Save under the number of steps, and as the latest; returns the latest."""
        target, latest = self.places.numbered(path, str(history.step)), self.places.latest(path)
        with naming(target):
            save(target, history)
        if latest != target:
            with naming(latest):
                _duplicate(target, latest)
            for old in self.places.outdated(path, history.step):
                remove(old)
        return latest


def _duplicate(source: Path, target: Path) -> None:
    """Make `target` the same file or folder as `source`; it is never half of it."""
    temporary = temporary_path(target)
    try:
        if source.is_dir():
            shutil.copytree(source, temporary)
            if old := put_folder(temporary, target):
                remove(old)
            return
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    except BaseException:
        remove(temporary)
        raise
