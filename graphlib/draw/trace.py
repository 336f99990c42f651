"""A watched run in the trace event format that chrome://tracing and Perfetto open."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from yupana.graphlib.draw.families import family_of
from yupana.graphlib.profile import Profile, Timing

_PROCESS = 1


def trace_json(profile: Profile) -> str:
    """The text of a trace file: an event for each call, times in µs.

    See "Trace Event Format" of the Chromium project: complete events ("X") on a track for each
    thread, metadata events ("M") with the names of the tracks.
    """
    run = profile.watched
    events = [_named("process_name", 0, "yupana")]
    events += [_named("thread_name", k, f"thread {k}") for k in range(len(run.threads))]
    details = [_details(timing) for timing in profile]
    for thread, calls in enumerate(run.threads):
        for call in calls:
            k = run.tasks[call.step]
            task = profile.timings[k].task
            events.append(
                {
                    "name": task.name,
                    "cat": family_of(task),
                    "ph": "X",
                    "pid": _PROCESS,
                    "tid": thread,
                    "ts": call.begin / 1e3,
                    "dur": (call.end - call.begin) / 1e3,
                    "args": {"task": k, "step": call.step, **details[k]},
                }
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}, indent=None)


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PROCESS, "tid": thread, "args": {"name": name}}


def _details(timing: Timing) -> dict[str, Any]:
    """What is said of a task where it is clicked."""
    last = timing.task.nodes[-1]
    file, _, line = last.site.rpartition(":")
    found: dict[str, Any] = {
        "result": last.label,
        "dtype": last.dtype.name,
        "flops": timing.task.cost.flops,
        "bytes": timing.task.cost.nbytes,
        "us alone on one thread": round(timing.ns / 1e3, 3),
        "GFLOP/s": round(timing.gflops, 3),
    }
    return found | ({"recorded at": f"{PurePath(file).name}:{line}"} if file else {})
