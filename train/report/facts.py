"""What the log of a run says of it, as the parts of the page about the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from statistics import median

from yupana.graphlib.draw.text import format_bytes, format_flops
from yupana.train.bill import make_bill
from yupana.train.progress import clock
from yupana.train.report.charts import Chart, curves
from yupana.train.report.runlog import RunLog, Text
from yupana.train.settings import FinetuneSettings, RunSettings
from yupana.train.step import Step

_RECENT = 20  # steps whose mean loss counts as that of the end
_TEXTS = 8  # shown at once


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


def title_of(log: RunLog) -> str:
    """The name of what was learned."""
    written = log.record.get("files", {})
    out = written.get("model") or written.get("adapter") or log.path.name
    return Path(str(out)).name


def tiles_of(log: RunLog) -> list[tuple[str, str, str]]:
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


def end_of(log: RunLog) -> str:
    """Where the run ended, and by which rule; empty where that is not known."""
    steps = log.record["steps"]
    why = log.end
    if not why and log.step >= steps:  # a log from before ends were written
        why = log.record.get("limit", "")
    return f"ended after step {log.step:,} of {steps:,}: {why}" if why else ""


def notes_of(log: RunLog, step: Step | None) -> Iterator[str]:
    """What a reader should know before believing the rest."""
    if log.step < log.record["steps"] and not log.end:
        yield (
            f"The log ends at step {log.step:,} of {log.record['steps']:,}: the run was killed, or "
            "is not over yet."
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


def settings_of(log: RunLog) -> list[Setting]:
    """The settings of the run, by flag."""
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


def bill_of(log: RunLog) -> list[Row]:
    """What the run was to need of memory."""
    bill = log.record["bill"]
    held = {name: n for name, n in bill["by_class"].items() if n}
    longest = max(held.values(), default=1)
    rows = [Row(name, format_bytes(n), n / longest) for name, n in held.items()]
    rows.append(Row("results in all", format_bytes(bill["peak"])))
    rows.append(Row("lower bound of results", format_bytes(bill["lower_bound"])))
    rows.append(Row("memory in all", format_bytes(bill["total"])))
    return rows


def predictions_of(log: RunLog) -> list[tuple[str, str, str]]:
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


def charts_of(log: RunLog) -> list[Chart]:
    """The curves of which the log has values."""
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


def some_texts(texts: list[Text]) -> list[Text]:
    """A few of many, the first and the last among them."""
    if len(texts) <= _TEXTS:
        return texts
    return [texts[round(k * (len(texts) - 1) / (_TEXTS - 1))] for k in range(_TEXTS)]
