"""Environment variables, all of them: name, type, default, meaning, range.

The values stand in `config`, which other modules read when they need them. A variable that is
empty counts as not set; one with an unknown name warns; a value outside its range is an error.
"""

import difflib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, SupportsIndex

from yupana.graphlib.errors import SettingError

_PREFIX = "YUPANA_"


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _default_cache_dir() -> str:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, or relative, which its specification says to ignore
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:  # a user without a home; nothing can be written here, and cache_folder
            base = os.devnull  # says so. A shared folder would run code that others wrote.
    return os.path.join(base, "yupana")


def _setting(meaning: str, *, low: int = 0, high: int | None = None, **default: Any) -> Any:
    return field(metadata={"meaning": meaning, "low": low, "high": high}, **default)


@dataclass
class Config:
    """Settings, read once from the environment; assign to change them in a process.

    The variable of a setting is its name in capitals behind ``YUPANA_``.

    Raises:
        SettingError: a value has the wrong type or is outside its range, also on assignment.

    >>> Config(threads=2).threads
    2
    """

    threads: int = _setting(
        "threads of a program that does not say; default: the cores this process may use",
        low=1,
        default_factory=available_cores,
    )
    cache_dir: str = _setting(
        "folder of compiled kernels; default: yupana in the user's cache folder",
        default_factory=_default_cache_dir,
    )
    debug: int = _setting(
        "0 off, 1 creation sites in errors, 2 time per node, 3 plan, 4 value summaries, and a stop "
        "at a result that is NaN or infinite",
        high=4,
        default=0,
    )
    verify: int = _setting("1 checks the graph's invariants after each pass", high=1, default=0)

    def __setattr__(self, name: str, value: object) -> None:
        setting = self.__dataclass_fields__.get(name)
        if setting is None:
            raise SettingError(f"config: no such setting: got {name!r}, want one of {_names()}.")
        object.__setattr__(self, name, _checked(setting.type, setting.metadata, name, value))


def _names() -> str:
    return ", ".join(f.name for f in fields(Config))


def _checked(kind: Any, rule: Mapping[str, Any], name: str, value: object) -> object:
    """`value` as a setting holds it, or a SettingError that names the variable."""
    if kind is str:
        if isinstance(value, str | os.PathLike) and os.fspath(value):
            return os.path.abspath(os.path.expanduser(value))  # stays right when the folder changes
        wanted = "a path"
    else:
        low, high = rule["low"], rule["high"]
        if isinstance(value, SupportsIndex):  # int, bool, numpy's integers
            number = value.__index__()
            if number >= low and (high is None or number <= high):
                return number
        wanted = f"a whole number of at least {low}" if high is None else f"{low} to {high}"
    raise SettingError(
        f"{_PREFIX}{name.upper()}: got {value!r}, want {wanted} ({rule['meaning']})."
    )


def _parsed(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text  # the check says what is wrong with it


def read_environment(environ: Mapping[str, str] = os.environ) -> Config:
    """Settings as `environ` gives them; warns of variables that look like ours and are not.

    Raises:
        SettingError: a value has the wrong type or is outside its range.

    >>> read_environment({"YUPANA_THREADS": "3"}).threads
    3
    """
    settings = {_PREFIX + f.name.upper(): f for f in fields(Config)}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or not text.strip():
            continue
        if name not in settings:
            close = difflib.get_close_matches(name, settings, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            warnings.warn(
                f"{name}: unknown variable, ignored; known are {', '.join(settings)}.{hint}",
                stacklevel=2,
            )
            continue
        values[settings[name].name] = _parsed(text) if settings[name].type is int else text
    return Config(**values)


config = read_environment()
