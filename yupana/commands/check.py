"""`yupana check`: the op prover over the registry, or over the ops of a file of your own."""

from __future__ import annotations

import difflib
import importlib.util
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from tyro.conf import Positional, arg

from yupana.graphlib.check import PROPERTIES, Report, check_op
from yupana.graphlib.errors import SettingError, YupanaError
from yupana.graphlib.op import REGISTRY, Op
from yupana.graphlib.sampler import place_of

_CALL = "Call: "  # before the smallest failing call, in the last line of a CheckError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Prove operations: on drawn calls their values, gradients, memory, threads and errors."""

    # Operations to prove; none: all of them, or all of the file.
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[OP ...]")] = ()
    # Calls to draw for each operation.
    examples: Annotated[int, arg(aliases=["-n"])] = 25
    # Seed of the draws: the same seed draws the same calls.
    seed: Annotated[int, arg(aliases=["-s"])] = 0
    # Only operations of this family.
    family: str = ""
    # Python file that declares operations of your own; it is run.
    file: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of proving one operation: a report, or why there is none."""

    op: Op[Any]
    report: Report | None
    failure: str
    seconds: float

    def line(self, width: int) -> str:
        """One line, cut to `width` columns, which leaves out the least important."""
        words = [f"{'ok' if self.report else 'FAILED':6}", f"{self.op.name:20}"]
        words.append(f"{self.seconds:5.1f} s")
        if self.report:
            worst = ", ".join(f"{name} {value:.2f}" for name, value in self.report.worst.items())
            words += [f"{self.report.examples:3} calls", worst]
        text = "  ".join(words)
        return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def run(settings: Settings) -> int:
    """Prove the operations one by one; returns 1 if one of them failed."""
    for name, least in (("examples", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            got = getattr(settings, name)
            raise SettingError(f"check: {name}: got {got}, want at least {least}.")
    module = load(settings.file) if settings.file else None
    chosen = choose(settings, module)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**9
    calls = f"{settings.examples} drawn call{'s' if settings.examples > 1 else ''}"
    print(f"{_ops(len(chosen))}, {calls} each; errors, at most, in parts of rounding's\n")
    start, done, failed = time.perf_counter(), 0, []
    try:
        for verdict in prove(chosen, settings):
            done += 1
            print(verdict.line(width), flush=True)
            if verdict.report is None:
                failed.append(verdict.op.name)
                print(_indented(explain(verdict, module)), flush=True)
    finally:  # after Ctrl-C, too
        seconds = time.perf_counter() - start
        print(f"\n{_summary(len(chosen), done, failed)} ({seconds:.0f} s)", flush=True)
    return 1 if failed else 0


def prove(ops: list[Op[Any]], settings: Settings) -> Iterator[Verdict]:
    """A verdict for each operation, as soon as it is known."""
    for op in ops:
        start = time.perf_counter()
        report, failure = None, ""
        try:
            report = check_op(op, settings.examples, settings.seed)
        except YupanaError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - of somebody's samples, whatever it is
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{at.filename}:{at.lineno}"
            failure = f"{op.name}: its record raised {type(error).__name__}: {error}\n{place}"
        yield Verdict(op, report, failure, time.perf_counter() - start)


def choose(settings: Settings, module: ModuleType | None) -> list[Op[Any]]:
    """The operations that the settings name, in the order of the registry.

    Raises:
        SettingError: a name or family that does not exist, or nothing is left.
    """
    declared = _declared(module)
    known = REGISTRY | {op.name: op for op in declared}
    for name in settings.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else "`yupana ops` lists them."
            raise SettingError(f"check: no such operation: got {name!r}. {hint}")
    if settings.names:
        chosen = [op for op in known.values() if op.name in settings.names]
    else:
        chosen = declared if module else list(known.values())
    if not chosen:
        raise SettingError(
            f"check: {settings.file}: got no operations, want some declared with @yp.op(...)."
        )
    if settings.family:
        families = sorted({op.family for op in chosen})
        chosen = [op for op in chosen if op.family == settings.family]
        if not chosen:
            raise SettingError(
                f"check: no operation of this family: got {settings.family!r}, want one of "
                f"{', '.join(families)}."
            )
    return chosen


def load(path: Path) -> ModuleType:
    """Run a file as a module of its name, as importing it from its folder would.

    Raises:
        SettingError: it raises an exception, or its name is not one for a module.
    """
    if not path.is_file():
        raise SettingError(f"check: no such file: got {path}.")
    name = path.stem
    if not name.isidentifier() or path.suffix != ".py" or name in sys.modules:
        taken = "a module of this name is loaded" if name in sys.modules else "no name of a module"
        raise SettingError(f"check: {path}: {taken}. Rename it, as in my_ops.py.")
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))  # for what stands beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        at = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin
        ]
        line = error.lineno if isinstance(error, SyntaxError) else (at or [None])[-1]
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise SettingError(f"check: {path}:{line}: {type(error).__name__}: {what}") from error
    return module


def _declared(module: ModuleType | None) -> list[Op[Any]]:
    """Operations of a module, by the order of their lines; those it imports are not its own."""
    if module is None:
        return []
    ops = [value for value in vars(module).values() if value.__class__ is Op]
    own = {op.name: op for op in ops if op.rule.__module__ == module.__name__}
    return list(own.values())


def explain(verdict: Verdict, module: ModuleType | None) -> str:
    """A failure, and the smallest call found as lines to paste into Python."""
    what, _, call = verdict.failure.partition(f"\n{_CALL}")
    if not call:
        return what
    imports = ["import numpy as np, yupana as yp"]
    if "yupana.graphlib.sampler." in call:
        imports.append("import yupana.graphlib.sampler")
    if module and place_of(verdict.op).startswith(f"{module.__name__}."):
        imports.append(f"import {module.__name__}")
    return "\n".join([what, "the smallest call found:", *imports, call])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _summary(wanted: int, done: int, failed: list[str]) -> str:
    text = f"stopped after {done} of {_ops(wanted)}; " if done < wanted else ""
    if failed:
        return f"{text}{len(failed)} of {_ops(done)} failed: {', '.join(failed)}"
    return f"{text}{_ops(done)} proved: {', '.join(PROPERTIES)}, errors"


def _ops(n: int) -> str:
    return f"{n} operation{'s' if n != 1 else ''}"
