"""What a picture of a graph says of each tensor on demand: bytes, work, time, place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from yupana.graphlib.draw.text import format_bytes, format_flops, format_time
from yupana.graphlib.errors import SettingError
from yupana.graphlib.memory import Plan
from yupana.graphlib.profile import Profile
from yupana.graphlib.task import Task
from yupana.graphlib.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Details:
    """What shall be said: `sizes`, `flops`, and what was measured or planned.

    Attributes:
        times: ns and task, by the last node of the task.
        plan: where results lie.
    """

    sizes: bool = False
    flops: bool = False
    times: dict[Tensor, tuple[float, Task]] = field(default_factory=dict)
    plan: Plan | None = None

    @classmethod
    def of(
        cls,
        nodes: Iterable[Tensor],
        sizes: bool = False,
        flops: bool = False,
        profile: Profile | None = None,
        plan: Plan | None = None,
    ) -> Details:
        """Of the nodes of a graph.

        Raises:
            SettingError: the profile or the plan is that of another graph.
        """
        known = set(nodes)
        times = {t.task.nodes[-1]: (t.ns, t.task) for t in profile or ()}
        if times and known.isdisjoint(times):
            raise _foreign("profile")
        if plan is not None and plan.storage and known.isdisjoint(plan.storage):
            raise _foreign("plan")
        return cls(sizes, flops, times, plan)

    def __bool__(self) -> bool:
        return bool(self.sizes or self.flops or self.times or self.plan)

    def line(self, tensors: list[Tensor]) -> str:
        """What is said of tensors alike: sizes and work of each, the mean time, all places."""
        first = tensors[0]
        parts = []
        if self.sizes:
            parts.append(format_bytes(first.nbytes))
        if self.flops and first.op is not None and (flops := first.op.cost_of(first).flops):
            parts.append(format_flops(flops))
        measured = [self.times[tensor] for tensor in tensors if tensor in self.times]
        if measured:
            ns = sum(ns for ns, _ in measured) / len(measured)
            joint = " for the kernel" if len(measured[0][1].nodes) > 1 else ""
            parts.append(f"{format_time(ns)}{joint}")
        if self.plan is not None and first.view_src is None:
            offsets = [self.plan.storage[t].offset for t in tensors if t in self.plan.storage]
            if offsets:
                least, most = min(offsets), max(offsets)
                last = f" … {format_bytes(most)}" if most > least else ""
                parts.append(f"at {format_bytes(least)}{last}")
        return ", ".join(parts)


def _foreign(what: str) -> SettingError:
    return SettingError(
        f"draw: {what}: got one of another graph, want that of a program of this graph, as "
        "graph.compile() makes it."
    )
