"""The page about a run: its log read, its step made again and measured, all of it in one file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from yupana.graphlib.draw import graph_svg, plan_svg
from yupana.graphlib.draw.text import format_bytes, format_flops, format_time, printable
from yupana.graphlib.errors import YupanaError
from yupana.models.formats import atomic_write
from yupana.train.machine import Machine, this_machine
from yupana.train.report.again import make_step_again
from yupana.train.report.charts import roofline
from yupana.train.report.facts import (
    bill_of,
    charts_of,
    end_of,
    notes_of,
    predictions_of,
    settings_of,
    some_texts,
    tiles_of,
    title_of,
)
from yupana.train.report.measured import Measured, measure
from yupana.train.report.runlog import RunLog, find_log, read_log
from yupana.train.step import Step

_NO_DOT = (
    "The program dot of graphviz is missing, so the graph is not drawn. Install it (Debian: "
    "apt install graphviz) and make the report again."
)
_TOO_LARGE = "The graph has too many different parts for a page; `yupana draw` draws it."


@dataclass(frozen=True)
class Picture:
    """A picture, or the reason why there is none."""

    svg: str | None = None
    reason: str = ""


def make_report(
    run: Path,
    out: Path | None = None,
    is_measured: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the report of a run, one file that needs no other and no network.

    Args:
        run: any file of a run, or its folder; see `find_log`.
        out: where to; by default report.html in the folder, or the log's name with .html.
        is_measured: run the training step to time its nodes, and measure the machine.
        tell: gets a line before what takes time.
    Returns:
        The file written.
    Raises:
        DataError: there is no such run, or its log says nothing of itself.
        OSError: the system cannot read or write.
    """
    log = read_log(find_log(run))
    target = out or (run / "report.html" if run.is_dir() else log.path.with_suffix(".html"))
    content = render(log, is_measured, tell)
    with atomic_write(target) as file:
        file.write(content.encode())
    return target


def render(
    log: RunLog, is_measured: bool = True, tell: Callable[[str], None] = lambda line: None
) -> str:
    """The page of a log; see `make_report`."""
    tell("making the training step again")
    step, reason = _step_again(log)
    measured: Measured | None = None
    if step is not None and is_measured:
        tell("measuring the step and this machine")
        measured = measure(step.program)
    if step is not None:
        tell("drawing")
    here = this_machine()
    template = _environment().from_string(_resource("page.html"))
    return template.render(
        style=_resource("page.css"),
        log=log,
        record=log.record,
        title=title_of(log),
        tiles=tiles_of(log),
        end=end_of(log),
        notes=[*notes_of(log, step)],
        settings=settings_of(log),
        bill=bill_of(log),
        predictions=predictions_of(log),
        charts=charts_of(log),
        texts=some_texts(log.texts),
        n_texts=len(log.texts),
        graph=_graph(step, reason),
        plan=Picture(reason=reason) if step is None else _plan(step),
        measured=measured,
        no_measure=reason or "It was not asked for.",
        roofline=roofline(measured.nodes, measured.limits[0]) if measured else None,
        machine=_machine(log.record["machine"]),
        here=_machine(asdict(here)),
        is_same_machine=log.record["machine"] == asdict(here),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _environment() -> Environment:
    """Everything is escaped but what the page calls safe: pictures, which escape themselves."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(
        bytes=format_bytes, flops=format_flops, ns=format_time, printable=printable, when=_when
    )
    return environment


def _when(text: str) -> str:
    """A time of the record for people; another text as it is."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _resource(name: str) -> str:
    return files("yupana.train.report").joinpath(name).read_text("utf-8")


def _step_again(log: RunLog) -> tuple[Step | None, str]:
    """The step, or why it cannot be made."""
    try:
        return make_step_again(log), ""
    except (YupanaError, OSError) as error:
        return None, f"The step of the run could not be made again: {error}"
    except (KeyError, TypeError, ValueError) as error:  # a record of another version
        return None, (
            "The step of the run could not be made again from what its log says, which may be that "
            f"of another version: {error!r}"
        )


def _graph(step: Step | None, reason: str) -> Picture:
    if step is None:
        return Picture(reason=reason)
    try:
        svg = graph_svg(step.graph)
    except YupanaError as error:
        return Picture(reason=str(error))
    if svg is None:
        return Picture(reason=_TOO_LARGE if shutil.which("dot") else _NO_DOT)
    return Picture(svg)


def _plan(step: Step) -> Picture:
    return Picture(plan_svg(step.prepared.plan, "Memory of a training step"))


def _machine(values: dict[str, Any]) -> str:
    """A machine in a line."""
    known: dict[str, Any] = {field.name: values.get(field.name) for field in fields(Machine)}
    m = Machine(**known)
    memory = f", {format_bytes(m.memory)} of memory" if m.memory else ""
    cores = f"{m.cores} core{'s' if m.cores != 1 else ''}"
    return f"{m.processor}, {cores}, {m.vectors}{memory}; {m.system}, Python {m.python}"
