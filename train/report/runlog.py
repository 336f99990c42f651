"""The log of a run, found by any of its files and read as it is, whole or cut off."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from yupana.graphlib.errors import DataError

_CURVES = ("loss", "validation", "rate", "norm", "tokens_per_s", "seconds", "peak_bytes")
# Of a record; all else may be missing.
_NEEDED = {
    "program", "version", "started", "machine", "threads", "settings", "model", "n_parameters",
    "n_trained", "data", "steps", "bill",
}  # fmt: skip
_HINT = "Name the folder of a run, its log (.jsonl), or a model, adapter or checkpoint it wrote."


class Text(NamedTuple):
    """A text that the model wrote."""

    step: int
    prompt: str
    text: str


@dataclass
class RunLog:
    """What a log says.

    Attributes:
        path: of the log.
        record: of the run, see `make_record`; the newest where it was resumed.
        curves: points (step, value) by name; of steps that were made twice, the later ones.
        texts: that the model wrote, in order.
        resumed: steps after which the run was gone on with.
        end: why the run ended; empty where the log does not say so.
        n_broken: lines that cannot be read, as one that was being written when the run was killed.
    """

    path: Path
    record: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    texts: list[Text] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    end: str = ""
    n_broken: int = 0

    @property
    def step(self) -> int:
        """The last step that is in the log."""
        return int(max((points[-1][0] for points in self.curves.values() if points), default=0))

    def file(self, relative: str) -> Path:
        """A path of the record, as counted from the log."""
        return self.path.parent / relative

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one line; KeyError, TypeError or ValueError where it is none of a run's."""
        step = int(entry["step"])
        if "run" in entry:
            self._take_record(step, entry["run"])
        elif "end" in entry:
            self.end = str(entry["end"])
        elif "text" in entry:
            while self.texts and self.texts[-1].step >= step:
                self.texts.pop()
            self.texts.append(Text(step, str(entry["prompt"]), str(entry["text"])))
        else:
            values = {name: float(entry[name]) for name in _CURVES if entry.get(name) is not None}
            if not values:
                raise KeyError("loss")
            for name, value in values.items():
                points = self.curves.setdefault(name, [])
                while points and points[-1][0] >= step:
                    points.pop()
                points.append((float(step), value))

    def _take_record(self, step: int, record: Any) -> None:
        if not _is_record(record):
            raise KeyError("run")
        self.record, self.end = record, ""
        if step:
            self.resumed.append(step)

    def finite(self, name: str) -> list[tuple[float, float]]:
        """The points of a curve that can be drawn."""
        return [point for point in self.curves.get(name, ()) if math.isfinite(point[1])]


def read_log(path: Path) -> RunLog:
    """Read a log; lines that are broken are counted and left out.

    Raises:
        DataError: it is the log of no run, or of one that said nothing of itself.
        OSError: the system cannot read it.
    """
    log, n_lines = RunLog(path, {}), 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        n_lines += 1
        try:
            log.add(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            log.n_broken += 1
    if log.record:
        return log
    if log.curves:
        raise DataError(
            f"report: {path}: the log says nothing of its run: got steps without settings, want "
            "the first line that yupana writes since it makes reports. Go on with the run for a "
            "step (--checkpoint-in), which writes that line too."
        )
    got = f"{n_lines} line{'s' * (n_lines > 1)} of something else" if n_lines else "an empty file"
    raise DataError(f"report: {path}: no log of a run: got {got}, want one. {_HINT}")


def find_log(path: Path) -> Path:
    """The log of the run that a path belongs to.

    Args:
        path: a log, a folder with one, or a model, adapter, checkpoint or curve that a run wrote.
    Raises:
        DataError: there is none, or a folder has several.

    Of the model that a run wrote, the log beside it::

        find_log(Path("yupana-demo/model.gguf"))
    """
    if not path.exists():
        raise DataError(f"report: {path}: no such file or folder. {_HINT}")
    if path.suffix == ".jsonl":
        return path
    if path.is_dir():
        logs = [*_logs_in(path)]
        if len(logs) > 1:
            names = ", ".join(log.name for log in logs[:6])
            raise DataError(f"report: {path}: got several runs, {names}; want one. Name its log.")
        if logs:
            return logs[0]
        if (path / "adapter_config.json").is_file():  # of PEFT, which a run wrote
            return _log_beside(path)
        raise DataError(f"report: {path}: no run in this folder. {_HINT}")
    return _log_beside(path)


def _log_beside(path: Path) -> Path:
    """The log, in the same folder, of the run that wrote a file."""
    logs = [*_logs_in(path.absolute().parent)]
    for log in logs:
        files = _first_record(log).get("files", {})
        written = [log.parent / str(name) for name in files.values()]
        if any(place.exists() and place.samefile(path) for place in written):
            return log
    if len(logs) == 1:  # as for a model under the number of a step
        return logs[0]
    raise DataError(f"report: {path}: the log of its run is not beside it. {_HINT}")


def _logs_in(folder: Path) -> Iterator[Path]:
    """Files of a folder that begin as the log of a run does."""
    for path in sorted(folder.glob("*.jsonl")):
        if path.is_file() and _first_record(path):
            yield path


def _first_record(path: Path) -> dict[str, Any]:
    """The record in a log's first line; nothing where there is none."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.readline(1 << 22)).get("run")
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return record if _is_record(record) else {}


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and record.keys() >= _NEEDED
