"""Names and types of the settings of sessions, for functions that pass them on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypedDict

from yupana.graphlib.errors import UnknownSettingError


class SessionSettings(TypedDict, total=False):
    """What `load` and `LanguageModel.session` take for `Session`, which explains them.

    >>> check_names("load", ["n_ctx", "n_context"])
    Traceback (most recent call last):
    yupana.graphlib.errors.UnknownSettingError: load: no such setting: got 'n_context'. Did you
    mean n_ctx?
    """

    n_ctx: int | None
    n_batch: int
    n_seq: int
    cache: str
    threads: int | None


def check_names(where: str, given: Iterable[str], others: Iterable[str] = ()) -> None:
    """Refuse names that no setting of a session has.

    Args:
        where: for the error.
        others: names beside them that may have been meant.
    Raises:
        UnknownSettingError: with the names that are near, or with all where none is.
    """
    known = [*SessionSettings.__annotations__, *others]
    for name in given:
        if name not in SessionSettings.__annotations__:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Want {', '.join(known)}."
            raise UnknownSettingError(f"{where}: no such setting: got {name!r}. {hint}")
