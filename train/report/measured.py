"""Where the time of a step goes, beside what the machine could do."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from yupana.graphlib.limits import Limits, measure_limits
from yupana.graphlib.profile import Profile, Timing, profile
from yupana.graphlib.program import Program
from yupana.graphlib.task import Task

_HOTTEST = 12
_SPENT_S = 4.0  # on measuring runs, about
_MOST_RUNS = 20
_PARTS = {"backward": "backward,", "gradient": "backward,", "recomputed": "computed again,"}


@dataclass(frozen=True)
class HotNode:
    """Tasks that are alike, as those of each layer.

    Attributes:
        ns: of all of them in one run, alone on one thread.
        share: of the whole run.
        reached: part of what the machine can do: 1 is a limit reached.
        is_computing: the limit that is nearer is that of arithmetic, not of memory.
    """

    op: str
    what: str
    count: int
    ns: float
    share: float
    gflops: float
    gb_per_s: float
    intensity: float  # FLOP for each byte
    reached: float
    is_computing: bool


@dataclass(frozen=True)
class Measured:
    """A step measured on this machine.

    Attributes:
        profile: each task on one thread, and a run on all.
        limits: of one thread, and of all threads where there are several.
        nodes: the hottest ones.
        rest: share of the time that the others take.
        flops, nbytes: of one run.
    """

    profile: Profile
    limits: tuple[Limits, ...]
    nodes: list[HotNode]
    rest: float
    flops: float
    nbytes: float

    @property
    def gflops(self) -> float:
        """10⁹ floating-point operations a second in a run on all threads."""
        return self.flops / max(self.profile.watched.ns, 1.0)

    @property
    def gb_per_s(self) -> float:
        """10⁹ bytes a second in a run on all threads, each operand counted once."""
        return self.nbytes / max(self.profile.watched.ns, 1.0)


def measure(program: Program) -> Measured:
    """Run a step some times and look where its time goes; some seconds."""
    program.run()
    start = time.perf_counter()
    program.run()
    spent = time.perf_counter() - start
    runs = int(_SPENT_S / 2 / max(spent * program.threads, 1e-6))
    found = profile(program, min(max(runs, 1), _MOST_RUNS))
    threads = sorted({1, program.threads})
    limits = tuple(measure_limits(n) for n in threads)
    nodes = hottest(found, limits[0])
    costs = [timing.task.cost for timing in found]
    rest = max(0.0, 1.0 - sum(node.share for node in nodes))
    work = sum(cost.flops for cost in costs), sum(cost.nbytes for cost in costs)
    return Measured(found, limits, nodes, rest, *work)


def hottest(found: Profile, limits: Limits, most: int = _HOTTEST) -> list[HotNode]:
    """The tasks that take most time on one thread, those alike together."""
    groups: dict[tuple[str, str], list[Timing]] = {}
    for timing in found:
        groups.setdefault((timing.task.name, _what(timing.task)), []).append(timing)
    ranked = sorted(groups.items(), key=lambda group: -sum(t.ns for t in group[1]))
    return [_node(op, what, ts, found.ns, limits) for (op, what), ts in ranked[:most]]


def _node(op: str, what: str, timings: list[Timing], whole: float, limits: Limits) -> HotNode:
    n, ns = len(timings), sum(timing.ns for timing in timings)
    flops, nbytes = (sum(getattr(t.task.cost, k) for t in timings) for k in ("flops", "nbytes"))
    computing = flops / limits.gflops
    moving = nbytes / limits.gb_per_s(nbytes / n)
    return HotNode(
        op=op,
        what=what,
        count=n,
        ns=ns,
        share=ns / whole if whole else 0.0,
        gflops=flops / ns if ns else 0.0,
        gb_per_s=nbytes / ns if ns else 0.0,
        intensity=flops / nbytes if nbytes else 0.0,
        reached=limits.share(flops / n, nbytes / n, ns / n),
        is_computing=computing >= moving,
    )


def _what(task: Task) -> str:
    """The weights it reads and what it gives; numbers of layers become stars."""
    result = task.nodes[-1]
    roots = dict.fromkeys(src.root for src in task.srcs)
    reads = dict.fromkeys(_starred(root.name) for root in roots if root.is_leaf and root.name)
    part = f"{_PARTS[result.role]} " if result.role in _PARTS else ""
    shape = " × ".join(map(str, result.shape)) or "one number"
    gives = f"{_starred(result.name)}, {shape}" if result.name else shape
    return f"{part}{' '.join([*reads][:2])} → {gives}".lstrip()


def _starred(name: str) -> str:
    """A name without the number of its layer."""
    return re.sub(r"\d+", "*", name)
