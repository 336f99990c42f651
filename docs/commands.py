"""Write the reference of the command line, docs/commands.md: `python docs/commands.py`.

A command's flags are the fields of its settings' dataclass. Names, values and defaults are read
from there, what a flag does from the comment above the field, and the fields stand in groups, by
the class that brings them. Nothing depends on the width of a terminal.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional, UseAppendAction

from yupana.cli import INTERRUPTED, PROGRAMS
from yupana.graphlib.config import Config

PAGE = Path(__file__).parent / "commands.md"
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_POSITIONAL = get_args(Positional[int])[1]
_REPEATED = get_args(UseAppendAction[tuple[int, ...]])[1]
HEAD = f"""# Commands

Every program of the command line with all its flags. This page is made by
`python docs/commands.py` from the dataclasses that the programs themselves are built on; `yupana
PROGRAM --help` prints the same.

- A switch that is *on* is switched off by the same name behind `--no-`: `--no-mmap`.
- Words within a flag may be joined by `_` as well as by `-`.
- The programs that train write a file whole or not at all, and finish the step when Ctrl-C is
  pressed; pressed again, it stops at once.
- Exit codes: 0 done; 2 an argument that is none, a value out of range, or settings that do not go
  together or into memory; 1 all else that fails: files, what is in them, values that are not
  finite; {INTERRUPTED} stopped by Ctrl-C.
- What went wrong stands in one message on standard error: what was given, what was wanted, what to
  do.
"""


@dataclass(frozen=True)
class Flag:
    """A field of a settings class as the command line has it."""

    name: str
    aliases: tuple[str, ...]
    value: str  # what follows it; empty: a switch
    default: str
    help: str
    group: type  # the class that brings it
    is_positional: bool
    is_repeated: bool

    @property
    def switch(self) -> str:
        """The flag as it is written."""
        return self.value if self.is_positional else f"--{self.name}"

    @property
    def row(self) -> str:
        """Its row of the table."""
        names = ", ".join(f"`{name}`" for name in (self.switch, *self.aliases))
        value = "" if self.is_positional or not self.value else f" {escape(self.value)}"
        more = " Repeatable." if self.is_repeated else ""
        return f"| {names}{value} | {self.default} | {escape(self.help)}{more} |"


def flags_of(settings: type) -> list[Flag]:
    """The flags of a program, in the order of its fields.

    >>> from yupana.commands.convert import Settings
    >>> [flag.switch for flag in flags_of(Settings)]
    ['SOURCE', 'TARGET', '--dtype', '--vocab']
    """
    hints = get_type_hints(settings, include_extras=True)
    return [_flag(settings, field, hints[field.name]) for field in dataclasses.fields(settings)]


def _flag(settings: type, field: "dataclasses.Field[Any]", hint: Any) -> Flag:
    kind, marks = _unwrapped(hint)
    named = [mark for mark in marks if hasattr(mark, "aliases")]
    name = next((m.name for m in named if m.name), field.name).replace("_", "-")
    is_positional, is_repeated = _POSITIONAL in marks, _REPEATED in marks
    value = "" if kind is bool else _value(kind, is_repeated)
    if is_positional:
        value = next((m.metavar for m in named if m.metavar), name.upper())
    owners = [c for c in settings.__mro__ if field.name in inspect.get_annotations(c)]
    return Flag(
        name=name,
        aliases=tuple(alias for mark in named for alias in mark.aliases or ()),
        value=value,
        default=_default(field, kind),
        help=_comments(owners[0])[field.name],
        group=owners[-1],
        is_positional=is_positional,
        is_repeated=is_repeated,
    )


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """A type without its annotations, and these; of `X | None` it is X."""
    marks: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks += more
        elif get_origin(hint) in (Union, UnionType):
            (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
        else:
            return hint, marks


def _value(kind: Any, is_repeated: bool) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is not Ellipsis:
            return " ".join(_value(part, False) for part in parts)
        return _value(parts[0], False) + ("" if is_repeated else " …")
    return WORDS[kind]


def _default(field: "dataclasses.Field[Any]", kind: Any) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "*required*"
    value = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    if kind is bool:
        return "on" if value else "off"
    if value is None or value == () or value == "":
        return "–"
    return f"`{value}`"


@functools.cache
def _comments(owner: type) -> dict[str, str]:
    """What stands above each field that a class declares."""
    text = textwrap.dedent(inspect.getsource(owner))
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            above = lines[first : node.lineno - 1]
            found[node.target.id] = " ".join(line.strip().lstrip("# ") for line in above)
    return found


def escape(text: str) -> str:
    r"""A text that means what it says in a cell of a table, outside of its backticks.

    >>> escape("a|b, `*` and *")
    'a\\|b, `*` and \\*'
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p[:1] == "`" else re.sub(r"([\\*<|])", r"\\\1", p) for p in parts)


def usage(name: str, flags: list[Flag]) -> str:
    """The call with what it cannot do without."""
    words = [flag.value if flag.default == "*required*" else f"[{flag.value}]"
             for flag in flags if flag.is_positional]  # fmt: skip
    words = [word.replace("[[", "[").replace("]]", "]") for word in words]
    words += [f"--{flag.name} {flag.value}" for flag in flags
              if flag.default == "*required*" and not flag.is_positional]  # fmt: skip
    return " ".join(["yupana", name, *words, "[FLAGS]"])


def tables(settings: type, flags: list[Flag]) -> Iterator[str]:
    """A table for each group: what the program alone has, then what it shares with others."""
    groups = [kind for kind in settings.__mro__ if any(flag.group is kind for flag in flags)]
    for group in groups:
        if len(groups) > 1:
            own = group is settings
            yield "**Its own**" if own else f"**{_first_line(group)}**"
        rows = [flag.row for flag in flags if flag.group is group]
        yield "\n".join(["| flag | default | what it does |", "|---|---|---|", *rows])


def _first_line(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").rstrip(".")


def entry(name: str) -> str:
    """The part of the page that describes one program."""
    settings = importlib.import_module(f"yupana.commands.{name.replace('-', '_')}").Settings
    flags = flags_of(settings)
    text = inspect.cleandoc(settings.__doc__ or "")
    call = f"```text\n{usage(name, flags)}\n```"
    parts = [f"## {name}", text, call, *tables(settings, flags)]
    if any(flag.name == "checkpointing" for flag in flags):
        parts.append(
            "ggml's `--use-checkpointing` and `--no-checkpointing` are understood: they are\n"
            "`--checkpointing sqrt` and `--checkpointing none`."
        )
    return "\n\n".join(parts)


def environment() -> str:
    """The part on variables that every program reads."""
    rows = [
        f"| `YUPANA_{field.name.upper()}` | {escape(field.metadata['meaning'])} |"
        for field in dataclasses.fields(Config)
    ]
    head = "Variables of the environment, which every program and `import yupana` read:"
    return "\n".join(["## Environment", "", head, "", "| variable | meaning |", "|---|---|", *rows])


def page() -> str:
    """The whole page."""
    listed = [f"| [{name}](#{name}) | {what} |" for name, what in PROGRAMS.items()]
    contents = "\n".join(["| program | what it is for |", "|---|---|", *listed])
    parts = [HEAD.strip(), contents, *map(entry, PROGRAMS), environment()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
