"""Docstrings as Markdown, for mkdocstrings: examples become blocks of code."""

import re
from typing import Any

import griffe

# From the first prompt to the end of a paragraph, or of several that begin with a prompt.
_EXAMPLE = re.compile(r"^(?=>>> ).*?(?=\n\n(?!>>> )|\Z)", flags=re.DOTALL | re.MULTILINE)

_RAISES = re.compile(r"^Raises:(\n(?: .*\n?)+)", flags=re.MULTILINE)


class Examples(griffe.Extension):
    """Puts the examples of every docstring between fences."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    r"""A docstring with fences around its examples.

    >>> as_markdown("Adds.\n\n>>> 1 + 1\n2")
    'Adds.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    text = _RAISES.sub(_one_error_a_line, text)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)  # a block of code follows, indented
    return _EXAMPLE.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```", text)


def _one_error_a_line(match: re.Match[str]) -> str:
    """The section, whose lines may hold several errors, as Google's form has it."""
    errors = re.split(r"(?<=\.) (?=\w+: )", " ".join(match[1].split()))
    return "\n".join(["Raises:", *(f"    {error}" for error in errors), ""])
