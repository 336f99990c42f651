"""Arguments that are not what a signature says, told apart after a call has failed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from yupana.graphlib.dtypes import Dtype
from yupana.graphlib.errors import SettingError
from yupana.graphlib.tensor import Tensor


def misfits(
    rule: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    """What to say of arguments that are not of the type that the rule's signature says."""
    signature = inspect.signature(rule)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # too many or too few: Python has said so
        return
    for name, value in given.items():
        parameter = signature.parameters[name]
        written = inspect.formatannotation(parameter.annotation).strip("'")
        wanted = re.sub(r"(\w+\.)+(?=\w)", "", written)  # without modules
        several = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        for one in value if several else (value,):
            if not _fits(one, wanted):
                got = type(one).__name__ if hasattr(one, "shape") else repr(one)[:60]
                advice = " Make one with yupana.tensor(x)." if "Tensor" in wanted else ""
                yield f"got {got} as {name}, want {wanted}.{advice}"


def check_kinds(where: str, kinds: Mapping[str, Any], values: Mapping[str, object]) -> None:
    """Refuse settings that are not of their kind, before anything is computed with them.

    Args:
        where: for the error.
        kinds: name to kind, as in `function.__annotations__` of a module that postpones them.
        values: name to value; those of no kind, or one that is not known here, are passed over.
    Raises:
        SettingError: names the setting, its value, and what was wanted.

    >>> check_kinds("train", {"rate": "float", "steps": "int | None"}, {"rate": "x", "steps": None})
    Traceback (most recent call last):
    yupana.graphlib.errors.SettingError: train: rate: got 'x', want a number.
    """
    for name, value in values.items():
        kind = kinds.get(name, "")
        if not _fits(value, kind):
            words = _WORDS.get(kind.removesuffix(" | None"), kind)
            none = ", or None" if kind.endswith("None") else ""
            raise SettingError(f"{where}: {name}: got {value!r}, want {words}{none}.")


def _fits(value: object, kind: str) -> bool:
    fits = _FITS.get(kind.removesuffix(" | None"))
    return fits is None or fits(value) or (value is None and kind.endswith("None"))


def _is_whole(x: object) -> bool:
    return isinstance(x, int | np.integer)


def _are_whole(x: object) -> bool:
    return isinstance(x, tuple | list) and all(map(_is_whole, x))


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "Tensor": lambda x: isinstance(x, Tensor),
    "int": _is_whole,
    "float": lambda x: isinstance(x, int | float | np.number),
    "bool": lambda x: isinstance(x, bool | np.bool_),
    "str": lambda x: isinstance(x, str),
    "str | Dtype": lambda x: isinstance(x, str | Dtype),
    "tuple[str, ...]": lambda x: isinstance(x, tuple | list) and all(isinstance(t, str) for t in x),
    "tuple[int, ...]": _are_whole,
    "Sequence[int]": _are_whole,
    "int | tuple[int, ...]": lambda x: _is_whole(x) or _are_whole(x),
    "tuple[tuple[int, int, int], ...]": lambda x: (
        isinstance(x, tuple | list) and all(_are_whole(part) and len(part) == 3 for part in x)
    ),
}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "text",
    "tuple[str, ...]": "several texts",
}
