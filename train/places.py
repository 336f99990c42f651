"""Where a run writes: its names, none of them another's or that of what it reads."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from yupana.graphlib.errors import SettingError
from yupana.models.formats import temporary_of, temporary_path
from yupana.train.settings import TrainSettings


class Places:
    """The names of the files that a run leaves.

    In names of what is learned and of checkpoints, the settings' `pattern_fn_it` stands for the
    number of steps; the newest is then also there under the name with `fn_latest` instead.

    Args:
        settings: names of the other files.
        out: where what is learned goes.
        what: it is, for messages: "model" or "adapter".
        merged: where the model with an adapter worked in goes; None: nowhere.
    """

    def __init__(
        self, settings: TrainSettings, out: Path, what: str, merged: Path | None = None
    ) -> None:
        self.settings, self.out, self.what, self.merged = settings, out, what, merged

    @property
    def log_path(self) -> Path:
        """Where the log goes."""
        return self.settings.log_out or self.latest(self.out).with_suffix(".jsonl")

    @property
    def curve_path(self) -> Path:
        """Where the picture of the loss goes."""
        return self.settings.curve_out or self.latest(self.out).with_suffix(".svg")

    @property
    def best_path(self) -> Path:
        """Where the best goes."""
        latest = self.latest(self.out)
        return latest.with_name(f"{latest.stem}-best{latest.suffix}")

    @property
    def newest(self) -> dict[str, Path]:
        """Where everything goes, the newest where files are numbered; what it is to its path."""
        found = {
            self.what: self.latest(self.out),
            f"best {self.what}": self.best_path,
            "loss curve": self.curve_path,
        }
        if self.settings.checkpoint_out is not None:
            found["checkpoint"] = self.latest(self.settings.checkpoint_out)
        return found

    @cached_property
    def _outputs(self) -> dict[str, Path]:
        """The setting that a file is named by, to its name."""
        own = "lora_out" if self.what == "adapter" else "model_out"
        files = {
            own: self.out,
            f"the best of {own}": self.best_path,
            "log_out": self.log_path,
            "curve_out": self.curve_path,
            "checkpoint_out": self.settings.checkpoint_out,
            "model_out": self.merged or (self.out if own == "model_out" else None),
        }
        return {name: path for name, path in files.items() if path is not None}

    def check(self, **inputs: Path | None) -> None:
        """Refuse to write over what the run reads, or twice to one name.

        Args:
            inputs: setting to the file it names.
        Raises:
            SettingError: a name is used twice.
        """
        taken = {name: path for name, path in inputs.items() if path is not None}
        start = self.settings.checkpoint_in
        for name, path in self._outputs.items():
            # A run may go on in the checkpoint that it started from.
            more = {"checkpoint_in": start} if start and name != "checkpoint_out" else {}
            for other, there in {**taken, **more}.items():
                if self._meet(path, there):
                    raise SettingError(
                        f"train: {name}: got {path}, which is {other}, too; want another name: "
                        f"{other} would be lost. Pass {_flag(name)}."
                    )
            taken[name] = path

    def make_folders(self) -> None:
        """Make the folders that the files go to; what killed runs left half written is removed.

        Raises:
            OSError: one of them takes no files.
        """
        for path in self._outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._clear(path)
            with naming(path):
                _try(path)
        events = self.settings.tensorboard
        if events is not None:
            with naming(events):
                events.mkdir(parents=True, exist_ok=True)
                _try(events / "events")

    def latest(self, path: Path) -> Path:
        """The name of the newest of numbered files."""
        return self.numbered(path, self.settings.fn_latest)

    def numbered(self, path: Path, text: str) -> Path:
        """A name with a number, or another text, where its pattern is."""
        pattern = self.settings.pattern_fn_it
        return path.with_name(path.name.replace(pattern, text)) if pattern else path

    def outdated(self, path: Path, step: int) -> list[Path]:
        """Files of this name with numbers up to `step`, but the newest few that are to be kept.

        Higher numbers are another run's.
        """
        keep, own, found = self.settings.keep_checkpoints, self._own(path), {}
        for there in path.parent.iterdir():
            match = own.fullmatch(there.name)
            if match is None or not match.groups() or there == self.latest(path):
                continue
            if there == self.numbered(path, match[1]) and int(match[1]) <= step:
                found[int(match[1])] = there
        return [found[number] for number in sorted(found)[:-keep]] if keep else []

    def _own(self, path: Path) -> re.Pattern[str]:
        """The names of a file under any number."""
        pattern, latest = self.settings.pattern_fn_it, re.escape(self.settings.fn_latest)
        parts = path.name.split(pattern) if pattern else [path.name]
        return re.compile(rf"(\d+|{latest})".join(map(re.escape, parts)))

    def _meet(self, one: Path, other: Path) -> bool:
        """Whether two names, of which each may be numbered, can become the same."""
        a, b = (self.latest(path).resolve() for path in (one, other))
        if a.parent != b.parent:
            return False
        return bool(self._own(one).fullmatch(b.name) or self._own(other).fullmatch(a.name))

    def _clear(self, path: Path) -> None:
        """Remove temporary files that were to become this one, under any number."""
        own = self._own(path)
        for found in [*path.parent.iterdir()]:
            if own.fullmatch(temporary_of(found) or ""):
                remove(found)
            elif own.fullmatch(found.name) and found.is_dir():
                for inner in filter(temporary_of, [*found.iterdir()]):
                    remove(inner)


def check_apart(out: Path, name: str, inputs: Mapping[str, Path | None]) -> None:
    """Refuse to write over what is read.

    Raises:
        SettingError: `out` is one of the inputs.
    """
    for other, path in inputs.items():
        if path is not None and path.resolve() == out.resolve():
            raise SettingError(
                f"{name}: got {out}, which is {other}, too; want another name: {other} would be "
                f"lost. Pass {_flag(name)}."
            )


def _flag(name: str) -> str:
    return f"--{name.split()[-1].replace('_', '-')} with another name"


def _try(path: Path) -> None:
    """Raise unless there can be a new file beside this one."""
    probe = temporary_path(path)
    probe.touch()
    probe.unlink()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system name the file that is meant, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def remove(path: Path) -> None:
    """Remove a file or folder, if the system lets us."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # somebody else was quicker
            path.unlink()
