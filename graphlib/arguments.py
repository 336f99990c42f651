"""Arguments that are not what a signature says, told apart after a call has failed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from yupana.graphlib.dtypes import Dtype
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
        fits = _FITS.get(wanted.removesuffix(" | None"))
        several = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        for one in value if several else (value,):
            if fits and not fits(one) and not (one is None and "None" in wanted):
                got = type(one).__name__ if hasattr(one, "shape") else repr(one)[:60]
                advice = " Make one with yupana.tensor(x)." if "Tensor" in wanted else ""
                yield f"got {got} as {name}, want {wanted}.{advice}"


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
    "tuple[int, ...]": _are_whole,
    "Sequence[int]": _are_whole,
    "int | tuple[int, ...]": lambda x: _is_whole(x) or _are_whole(x),
    "tuple[tuple[int, int, int], ...]": lambda x: (
        isinstance(x, tuple | list) and all(_are_whole(part) and len(part) == 3 for part in x)
    ),
}
