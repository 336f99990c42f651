"""Values of flags that are texts of a form of their own: biases, metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from yupana.graphlib.errors import SettingError


def parse_biases(texts: tuple[str, ...]) -> dict[int, float]:
    """Biases as the command line has them.

    Raises:
        SettingError: one is no bias.

    >>> parse_biases(("15043+1", "29905-inf"))
    {15043: 1.0, 29905: -inf}
    """
    biases = {}
    for text in texts:
        found = re.fullmatch(r"(\d+)([+-](?:inf|\d+\.?\d*(?:[eE]-?\d+)?|\.\d+))", text)
        if not found:
            raise SettingError(
                f"logit_bias: got {text!r}, want a token id, a sign and a number, as 15043+1 or "
                "29905-inf."
            )
        biases[int(found[1])] = float(found[2])
    return biases


_VALUES: Mapping[str, Callable[[str], bool | int | float | str]] = {
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "str": str,
}


def parse_overrides(texts: tuple[str, ...]) -> dict[str, bool | int | float | str]:
    """Metadata as the command line has it.

    Raises:
        SettingError: one is not of the form KEY=TYPE:VALUE, or no value of its type.

    >>> parse_overrides(("llama.rope.freq_base=float:1e6", "general.name=str:a=b:c"))
    {'llama.rope.freq_base': 1000000.0, 'general.name': 'a=b:c'}
    """
    found = {}
    for text in texts:
        key, _, rest = text.partition("=")
        kind, _, value = rest.partition(":")
        try:
            found[key] = _VALUES[kind](value)
        except (KeyError, ValueError):
            raise SettingError(
                f"override_kv: got {text!r}, want KEY=TYPE:VALUE with type int, float, bool (true "
                "or false) or str, as llama.rope.freq_base=float:1e6."
            ) from None
    return found
