"""The page about a run: its log read, its step made again and measured, all of it in one file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined

from yupana.graphlib.draw import graph_svg, plan_svg
from yupana.graphlib.draw.text import format_bytes, format_flops, format_time, printable
from yupana.graphlib.errors import YupanaError
from yupana.models.formats import atomic_write
from yupana.train.bill import make_bill
from yupana.train.machine import Machine, this_machine
from yupana.train.progress import clock
from yupana.train.report.again import make_step_again
from yupana.train.report.charts import Chart, curves, roofline
from yupana.train.report.measured import Measured, measure
from yupana.train.report.runlog import RunLog, Text, find_log, read_log
from yupana.train.settings import FinetuneSettings, RunSettings
from yupana.train.step import Step

_RECENT = 20  # steps whose mean loss counts as that of the end
_TEXTS = 8  # shown at once
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


@dataclass(frozen=True)
class Setting:
    """A setting as the command line has it."""

    flag: str
    value: str
    is_default: bool


@dataclass(frozen=True)
class Row:
    """A line of the bill; `part` of the longest bar, or None where there is no bar."""

    name: str
    value: str
    part: float | None = None


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
        title=_title(log),
        tiles=_tiles(log),
        notes=[*_notes(log, step)],
        settings=_settings(log),
        bill=_bill(log),
        predictions=_predictions(log),
        charts=_charts(log),
        texts=_some(log.texts),
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


def _title(log: RunLog) -> str:
    written = log.record.get("files", {})
    out = written.get("model") or written.get("adapter") or log.path.name
    return Path(str(out)).name


def _tiles(log: RunLog) -> list[tuple[str, str, str]]:
    """The few numbers that say most: name, value, and what else there is to say."""
    record, tiles = log.record, []
    losses, checked = log.finite("loss"), log.finite("validation")
    if losses:
        recent = [loss for _, loss in losses[-_RECENT:]]
        first = f"from {losses[0][1]:.3f}"
        tiles.append(("training loss", f"{sum(recent) / len(recent):.3f}", first))
    if checked:
        step, best = min(checked, key=lambda point: point[1])
        perplexity = f"perplexity {math.exp(min(best, 700.0)):.3g}, step {step:g}"
        tiles.append(("best validation", f"{best:.3f}", perplexity))
    tiles.append(("steps", f"{log.step:,}", f"of {record['steps']:,}"))
    speeds, seconds = log.finite("tokens_per_s"), log.finite("seconds")
    if speeds:
        tiles.append(("tokens a second", f"{median(v for _, v in speeds):,.0f}", "median of steps"))
    if seconds:
        spent = [s for _, s in seconds]
        tiles.append(("time in steps", clock(sum(spent)), f"{1e3 * median(spent):.3g} ms each"))
    trained, n = record["n_trained"], record["n_parameters"]
    beside = "all trained" if trained == n else f"{trained:,} trained"
    tiles.append(("parameters", f"{n:,}", beside))
    return tiles


def _notes(log: RunLog, step: Step | None) -> Iterator[str]:
    """What a reader should know before believing the rest."""
    if log.step < log.record["steps"]:
        yield (
            f"The log ends at step {log.step:,} of {log.record['steps']:,}: the run ended early, "
            "was stopped, or is not over yet."
        )
    if log.resumed:
        steps = ", ".join(f"{step:,}" for step in log.resumed)
        yield f"The run was stopped and gone on with, after step {steps}."
    if log.n_broken:
        lines = "1 line" if log.n_broken == 1 else f"{log.n_broken} lines"
        yield f"{lines} of the log cannot be read and were left out."
    if step is not None:
        peak = make_bill(step).peak
        if peak != log.record["bill"]["peak"]:
            yield (
                f"Made again here, the step needs {format_bytes(peak)} for results, not "
                f"{format_bytes(log.record['bill']['peak'])} as in the run: what is computed again "
                "to save memory depends on the memory there is. The graph, the plan and the times "
                "below are those of the step as made here."
            )


def _settings(log: RunLog) -> list[Setting]:
    kind = FinetuneSettings if log.record["program"] == "finetune" else RunSettings
    defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    found = []
    for name, value in log.record["settings"].items():
        if isinstance(value, list):
            value = tuple(value)
        default = defaults.get(name)
        is_default = name in defaults and value == (
            str(default) if isinstance(default, Path) else default
        )
        found.append(Setting("--" + name.replace("_", "-"), _value(value), is_default))
    return found


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    names = {None: "none", True: "yes", False: "no", "": "empty"}
    if value is None or isinstance(value, bool) or value == "":
        return names[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bill(log: RunLog) -> list[Row]:
    bill = log.record["bill"]
    held = {name: n for name, n in bill["by_class"].items() if n}
    longest = max(held.values(), default=1)
    rows = [Row(name, format_bytes(n), n / longest) for name, n in held.items()]
    rows.append(Row("results in all", format_bytes(bill["peak"])))
    rows.append(Row("lower bound of results", format_bytes(bill["lower_bound"])))
    rows.append(Row("memory in all", format_bytes(bill["total"])))
    return rows


def _predictions(log: RunLog) -> list[tuple[str, str, str]]:
    """What was foreseen, beside what was seen."""
    bill, rows = log.record["bill"], []
    seconds = [s for _, s in log.finite("seconds")]
    seen = f"{1e3 * median(seconds):.3g} ms" if seconds else "no step made"
    rows.append(("time of a step", f"{1e3 * bill['seconds']:.3g} ms", f"{seen} (median)"))
    again = f", {bill['recomputed'] / bill['flops']:.1%} of it again" if bill["recomputed"] else ""
    speed = f"{bill['flops'] / median(seconds) / 1e9:.3g} GFLOP/s" if seconds else "no step made"
    rows.append(("work of a step", f"{format_flops(bill['flops'])}{again}", speed))
    peaks = [n for _, n in log.finite("peak_bytes")]
    process = f"{format_bytes(peaks[-1])}, Python and all" if peaks else "not known"
    rows.append(("memory", format_bytes(bill["total"]), process))
    return rows


def _charts(log: RunLog) -> list[Chart]:
    losses = {"training": log.finite("loss"), "validation": log.finite("validation")}
    wanted = [
        curves("Loss", "nats a token", losses, lambda v: f"{v:.3f}"),
        curves("Learning rate", "", {"rate": log.finite("rate")}, lambda v: f"{v:.3g}"),
        curves("Norm of the gradients", "", {"norm": log.finite("norm")}, lambda v: f"{v:.3g}"),
        curves(
            "Speed",
            "",
            {"tokens a second": log.finite("tokens_per_s")},
            lambda v: f"{v:,.0f}",
        ),
    ]
    return [chart for chart in wanted if chart is not None]


def _some(texts: list[Text]) -> list[Text]:
    """A few of many, the first and the last among them."""
    if len(texts) <= _TEXTS:
        return texts
    return [texts[round(k * (len(texts) - 1) / (_TEXTS - 1))] for k in range(_TEXTS)]


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
