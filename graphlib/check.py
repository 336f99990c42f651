"""The op prover: every property an op promises, checked on calls that its samples draw.

`check_op` is for authors of ops; the library's own tests run the same properties over the whole
registry, with hypothesis as the source of the draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yupana.graphlib.compare import CheckError
from yupana.graphlib.errors import YupanaError
from yupana.graphlib.op import REGISTRY
from yupana.graphlib.properties import PROPERTIES, AnyOp, Property, Trace, check_errors
from yupana.graphlib.sampler import (
    MAX_AXES,
    Sampler,
    draw_call,
    place_of,
    random_numbers,
    redraw,
    source_of,
)

__all__ = ["PROPERTIES", "CheckError", "Report", "check_errors", "check_op", "check_property"]

_LONGEST_CALL = 1500  # characters of a call shown in an error
_TRIALS = 400  # at most, to find a smaller call that fails


@dataclass
class Report:
    """What `check_op` found: how bad an error of each property is at most.

    1 would be as wrong as rounding can explain. How much that is where, is worked out only for
    calls that are further off than roundings of 1 explain: below 1, numbers are upper bounds.
    """

    op: str
    examples: int
    worst: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        found = ", ".join(f"{name} {value:.2f}" for name, value in self.worst.items())
        return f"{self.op}: {self.examples} calls in {self.seconds:.1f} s; {found}"


def check_op(op: str | AnyOp, examples: int = 25, seed: int = 0) -> Report:
    """Prove an op on drawn calls: values, gradients, memory, threads, errors.

    Args:
        op: a name in the registry, or a record that need not be registered.
        examples: calls to draw. seed: of the draws.
    Returns:
        The worst error of each property, at most; 1 would be as wrong as rounding can explain.
    Raises:
        CheckError: a property does not hold; the message ends with the smallest call found for
        which it does not, as source.

    >>> check_op("add", examples=2).op
    'add'
    """
    record = REGISTRY.get(op) if isinstance(op, str) else op
    if record is None:
        raise CheckError(f"check_op: no op of this name: got {op!r}, want one of the registry")
    start = time.perf_counter()
    check_errors(record)
    report = Report(record.name, examples, dict.fromkeys(PROPERTIES, 0.0))
    rng = np.random.default_rng(seed)
    for _ in range(examples):
        sampler = Sampler(random_numbers(rng))
        draw_call(record, sampler)
        for name in PROPERTIES:
            found = check_property(record, name, sampler.trace)
            report.worst[name] = max(report.worst[name], found)
    report.seconds = time.perf_counter() - start
    return report


def check_property(op: AnyOp, name: str, trace: Trace, shrink: bool = True) -> float:
    """Check one property of `op` on the call drawn from `trace`; see `check_op`."""
    holds = PROPERTIES[name]
    failure = _failure(holds, op, trace)
    if isinstance(failure, float):
        return failure
    if shrink:
        trace, failure = _smallest(holds, op, trace, failure)
    text = _call_text(op, trace, specials=name == "specials")
    raise CheckError(f"{failure}\nCall: {text}") from failure


def _failure(holds: Property, op: AnyOp, trace: Trace) -> float | Exception:
    try:
        return float(holds(op, trace))
    except CheckError as failure:
        return failure
    except Exception as failure:  # noqa: BLE001 - whatever it is, the call must be named
        text = str(failure)
        if not isinstance(failure, YupanaError) or not text.startswith(f"{op.name}: "):
            text = f"{op.name}: raised {type(failure).__name__}: {failure}"
        wrapped = CheckError(text)
        wrapped.__cause__ = failure
        return wrapped


def _smallest(
    holds: Property, op: AnyOp, trace: Trace, failure: Exception
) -> tuple[Trace, Exception]:
    """Lower the numbers drawn one by one as long as the property still fails."""
    best, left = list(trace), _TRIALS
    progress = True
    while progress and left > 0:
        progress = False
        for k in range(len(best) - 1, -1, -1):
            for lower in _lowered(best, k) if k < len(best) else ():
                left -= 1
                drawn = redraw(op, lower)[1].trace
                found = _failure(holds, op, drawn)
                if isinstance(found, Exception) and (len(drawn), drawn) < (len(best), best):
                    best, failure, progress = drawn, found, True
                    break
    return best, failure


def _lowered(trace: list[int], k: int) -> Iterator[list[int]]:
    """With number k lowered; where it may count axes also without as many numbers behind it."""
    for smaller in sorted({0, trace[k] // 2, max(trace[k] - 1, 0)} - {trace[k]}):
        for gone in (trace[k] - smaller, 0) if trace[k] <= MAX_AXES else (0,):
            yield [*trace[:k], smaller, *trace[k + 1 + gone :]]


def _call_text(op: AnyOp, trace: Trace, **options: Any) -> str:
    text = source_of(op, redraw(op, trace, **options)[0])
    if len(text) > _LONGEST_CALL:
        return f"yupana.graphlib.sampler.redraw({place_of(op)}, {list(trace)}, **{options})[0]"
    return text
