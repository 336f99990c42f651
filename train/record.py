"""What a run says of itself in the first line of its log: settings, sizes, bill, machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yupana.models.llama import LlamaConfig
from yupana.train.machine import this_machine

if TYPE_CHECKING:
    from yupana.train.run import Run


def make_record(
    run: Run, program: str, config: LlamaConfig, n_parameters: int, **more: Any
) -> dict[str, Any]:
    """The record as JSON can hold it.

    Paths in `files` are counted from the folder of the log, so that a run can be moved as a whole.

    Args:
        program: its name on the command line.
        config: sizes of the model.
        n_parameters: of the model, trained or not.
        more: entries that only this program has.
    """
    folder = run.files.places.log_path.parent
    data = run.data
    return {
        "program": program,
        "version": _version(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(this_machine()),
        "threads": run.step.program.threads,
        "settings": plain_settings(run.settings),
        "model": asdict(config),
        "n_parameters": n_parameters,
        "n_trained": sum(param.size for param in run.step.params),
        "data": {
            "n_tokens": data.training.n_tokens,
            "n_validation": data.validation.n_tokens if data.validation else 0,
            "is_packed": data.training.is_packed,
            "notes": list(data.notes),
        },
        "steps": run.loop.settings.steps,
        "limit": run.limit,
        "bill": asdict(run.bill),
        "files": {what: relative(path, folder) for what, path in run.files.places.newest.items()},
        **more,
    }


def plain_settings(settings: Any) -> dict[str, Any]:
    """Settings as JSON can hold them: paths as text."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def relative(path: Path, folder: Path) -> str:
    """`path` as counted from `folder`.

    >>> relative(Path("runs/a/m.gguf"), Path("runs"))
    'a/m.gguf'
    """
    return os.path.relpath(path.absolute(), folder.absolute())


def read_settings(kind: type, values: Mapping[str, Any]) -> Any:
    """Settings of a record as they were; those that this version does not know are left out.

    >>> from yupana.train.settings import RunSettings
    >>> settings = RunSettings(model_out=Path("m.gguf"), param_group=("*=0.1",), adam_iter=9)
    >>> read_settings(RunSettings, plain_settings(settings)) == settings
    True
    """
    known = {}
    for field in fields(kind):
        if field.name in values:
            value = values[field.name]
            if isinstance(value, str) and "Path" in str(field.type):
                value = Path(value)
            known[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**known)


def _version() -> str:
    try:
        return version("yupana")
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"
