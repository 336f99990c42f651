"""The bill of a run before its first step: bytes, FLOPs, seconds; and whether it fits at all."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from yupana.graphlib.budget import Checkpoints, MemoryBudget
from yupana.graphlib.config import config
from yupana.graphlib.context import aligned
from yupana.graphlib.draw.text import format_bytes, format_flops
from yupana.graphlib.errors import MemoryBudgetError, SettingError
from yupana.graphlib.memory import ACTIVATIONS, GRADIENTS, INPUTS, OPTIMISER, WEIGHTS, WORKSPACE
from yupana.graphlib.tensor import Tensor
from yupana.train.progress import clock
from yupana.train.step import Step


@dataclass(frozen=True)
class Bill:
    """What a run takes.

    Gradients, activations and workspace are each the most at one time; they share the memory of
    results, which is hardly ever their sum.
    """

    by_class: dict[str, int]  # bytes
    peak: int  # bytes of results, as planned
    lower_bound: int  # bytes of results that no plan can do without
    total: int  # bytes in memory of the run's own
    flops: float  # of a step
    recomputed: float  # of these, what is computed again to save memory
    seconds: float  # predicted for a step
    n_steps: int

    def table(self) -> str:
        """Lines for people.

        The mapped file does not count in memory: the system can take its pages back.
        """
        again = f", {self.recomputed / self.flops:.1%} of it again" if self.recomputed else ""
        rows = [(name, format_bytes(n)) for name, n in self.by_class.items() if n]
        rows += [
            ("results in all", format_bytes(self.peak)),
            ("lower bound", format_bytes(self.lower_bound)),
            ("memory in all", format_bytes(self.total)),
            ("work per step", format_flops(self.flops) + again),
            ("time per step", f"about {self.seconds * 1e3:.3g} ms"),
        ]
        if self.n_steps > 1:
            total = clock(self.seconds * self.n_steps)
            rows.append(("time in all", f"about {total} for {self.n_steps} steps"))
        return "\n".join(f"{name:18}{value}" for name, value in rows)


def make_bill(
    step: Step, n_steps: int = 1, threads: int | None = None, adapter: Iterable[Tensor] = ()
) -> Bill:
    """Add up what so many steps take, from the plan of one.

    Args:
        adapter: parameters that stand apart from the weights of the model.

    >>> import yupana as yp
    >>> from yupana.train.optimiser import AdamWSettings
    >>> from yupana.train.step import TrainingStep
    >>> ctx = yp.Context(no_alloc=True)
    >>> w, x = ctx.param((64, 64), name="w"), ctx.input((8, 64), name="x")
    >>> bill = make_bill(TrainingStep((x @ w).sqr().sum(), [x], AdamWSettings()))
    >>> bill.by_class["weights"], bill.by_class["optimiser"], bill.peak >= bill.lower_bound
    (16384, 32768, True)
    """
    prepared, n_runs = step.prepared, step.n_runs
    plan = prepared.plan
    apart = sum(aligned(param.nbytes) for param in adapter)
    by_class = {
        "mapped file": plan.mapped_bytes,
        WEIGHTS: plan.by_class[WEIGHTS] - apart - plan.mapped_bytes,
        "adapter": apart,
        OPTIMISER: plan.by_class[OPTIMISER] + step.aside_bytes,
        **{name: plan.by_class[name] for name in (INPUTS, GRADIENTS, ACTIVATIONS, WORKSPACE)},
    }
    nodes = [node for task in prepared.tasks for node in task.nodes if node.op]
    again = sum(n.op.cost_of(n).flops for n in nodes if n.op and n.role == "recomputed")
    return Bill(
        by_class=by_class,
        peak=plan.peak,
        lower_bound=plan.lower_bound,
        total=plan.own_bytes + step.aside_bytes,
        flops=n_runs * sum(task.cost.flops for task in prepared.tasks),
        recomputed=n_runs * again,
        seconds=n_runs * prepared.work_ns * 1e-9 / (threads or config.threads),
        n_steps=n_steps,
    )


# Records the step of a run with other checkpoints, rows of a batch, and context.
Record = Callable[[Checkpoints, int, int], Step]


def fitting_step(
    record: Record, checkpoints: Checkpoints, n_batch: int, n_ctx: int, limit: int | None
) -> Step:
    """The step of a run, recorded, if it fits.

    Args:
        checkpoints: see `Graph.backward`.
        limit: bytes; None: not known.
    Raises:
        SettingError: it does not fit. Says what settings would, found by planning with them.
    """
    try:
        step = record(checkpoints, n_batch, n_ctx)
        needed = make_bill(step).total
        if isinstance(checkpoints, MemoryBudget):
            limit = min(checkpoints.nbytes, limit or checkpoints.nbytes)
        if limit is None or needed <= limit:
            return step
    except MemoryBudgetError as error:
        assert isinstance(checkpoints, MemoryBudget)
        limit, needed = checkpoints.nbytes, error.smallest
    found = _remedy(record, n_batch, n_ctx, limit)
    raise SettingError(
        f"train: memory: the run does not fit: got settings that need {format_bytes(needed)}, want "
        f"at most {format_bytes(limit)}. "
        + (found or "No batch and context would: take a smaller model, or lower ranks.")
    )


def _remedy(record: Record, n_batch: int, n_ctx: int, limit: int) -> str | None:
    """Settings that fit, the mildest change; None: there are none."""
    sizes = [(n_batch >> k, n_ctx) for k in range(n_batch.bit_length())]
    sizes += [(1, n_ctx >> k) for k in range(1, n_ctx.bit_length() - 1)]

    def least(size: tuple[int, int]) -> int:
        """About what a search for the leanest checkpoints comes to, which takes seconds."""
        words: tuple[Checkpoints, ...] = ("all", "sqrt")
        return min(make_bill(record(word, *size)).total for word in words)

    found = bisect_left(sizes, True, key=lambda size: least(size) <= limit)  # ever less memory
    for rows, ctx in sizes[found:]:
        with contextlib.suppress(MemoryBudgetError):
            total = make_bill(record(MemoryBudget(limit), rows, ctx)).total
            changes = ["checkpointing auto"]
            if rows < n_batch:
                changes.append(f"batch {rows}")
            if ctx < n_ctx:
                changes.append(f"ctx {ctx}")
            return f"With {', '.join(changes)} it needs {format_bytes(total)}."
    return None
