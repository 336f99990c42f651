"""Which settings somebody gave, as apart from defaults: a run that goes on has to know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self, get_type_hints


class Given:
    """Base of settings that remember which of their fields were given.

    `dataclasses.replace` gives all of them; `changed` leaves what was given as it is.

    >>> from yupana.train.settings import RunSettings
    >>> settings = RunSettings(batch=8)
    >>> later = settings.changed(seed=3)
    >>> later.seed, sorted(settings.given), sorted(later.given)
    (3, ['batch'], ['batch'])
    """

    given: frozenset[str]

    def __new__(cls, **given: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset(given))
        return self

    def changed(self, **changes: Any) -> Self:
        """The same with other values; they do not count as given."""
        return self.with_given(self.given, **changes)

    def with_given(self, names: Iterable[str], **changes: Any) -> Self:
        """The same, with so many fields given."""
        new: Self = replace(self, **changes)  # type: ignore[type-var]
        object.__setattr__(new, "given", frozenset(names))
        return new


def as_paths(settings: Any) -> None:
    """Make paths of fields that are to be paths and were given as text."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and "Path" in str(field.type):
            object.__setattr__(settings, field.name, Path(value))


def given_flags(kind: type, arguments: Sequence[str]) -> set[str]:
    """Fields of settings that the words of a command line are about.

    >>> from yupana.train.settings import RunSettings
    >>> sorted(given_flags(RunSettings, ["--adam_alpha=1e-3", "-s7", "--no-use-flash", "-b", "4"]))
    ['adam_alpha', 'batch', 'seed', 'use_flash']
    """
    hints = get_type_hints(kind, include_extras=True)
    short: dict[str, str] = {}
    for name, hint in hints.items():
        for mark in getattr(hint, "__metadata__", ()):
            short |= dict.fromkeys(getattr(mark, "aliases", None) or (), name)
    found = set()
    for word in arguments:
        flag = word.partition("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--"):
            found |= {name, name.removeprefix("no_"), short.get(flag, "")}
        else:  # a value may stand right behind a short one
            found |= {short.get(flag, ""), short.get(flag[:2], "")}
    return found & set(hints)
