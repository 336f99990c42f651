"""Memory budgets: the cheapest recomputation whose planned memory fits.

Planning is cheap and running is not, so choices are tried on plans. They are: nothing; layer
boundaries up to some point, all of them or every second, third, … one. Behind the last of them
nothing is computed again, so fewer cost less; a larger distance between them needs less memory
for the boundaries themselves and more for what lies between two.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from yupana.graphlib.arguments import check_kinds
from yupana.graphlib.errors import GraphError, MemoryBudgetError, require
from yupana.graphlib.fusion import find_groups
from yupana.graphlib.memory import least_bytes, make_plan
from yupana.graphlib.needs import Lowered
from yupana.graphlib.op import Matmul
from yupana.graphlib.order import Order, evaluation_order
from yupana.graphlib.remat import Remat, choose_checkpoints, find_boundaries, with_the_rest
from yupana.graphlib.task import Task, make_tasks
from yupana.graphlib.tensor import Tensor

_Choice = tuple[int, int]  # distance, number
_PATIENCE = 3  # distances in a row that are no better, before the search ends


@dataclass(frozen=True)
class MemoryBudget:
    """Checkpoints chosen so that what a graph needs fits, at the least work.

    Counted is `Plan.own_bytes`: leaves in memory of their own (weights, the optimiser's state,
    inputs) and the arena of all results. Mapped files, Python and its libraries come on top.
    `yupana.gradients` and `Graph.backward` count what is recorded when they are called, an
    optimiser's steps only if `recompute` is called after they are recorded.

    >>> import yupana as yp
    >>> ctx = yp.Context()
    >>> x = ctx.input((64, 16))
    >>> for k in range(8):
    ...     x = x + (x @ ctx.param((16, 64))).silu() @ ctx.param((64, 16))
    >>> loss = x.sum()
    >>> graph = yp.Graph(loss)
    >>> grads = graph.backward(loss, yp.MemoryBudget(200_000))
    >>> graph.plan().own_bytes <= 200_000
    True
    """

    # Bytes that may be used.
    nbytes: int
    # Share of the graph's FLOPs that may be added to need even less.
    spare: float = 0.0
    # What it is compiled with; see `Graph.compile`.
    matmul: Matmul = "f32"

    def __post_init__(self) -> None:
        check_kinds("MemoryBudget", MemoryBudget.__annotations__, vars(self))
        require("MemoryBudget", "nbytes", self.nbytes, self.nbytes >= 0, "at least 0")
        require("MemoryBudget", "spare", self.spare, self.spare >= 0, "at least 0")


Checkpoints = Sequence[Tensor] | Literal["sqrt", "all"] | MemoryBudget | None


def recompute(
    loss: Tensor, outputs: Iterable[Tensor], checkpoints: Checkpoints, order: Order | None = None
) -> Remat:
    """Let what is recorded beyond `loss` read clones of its results, computed from checkpoints.

    Args:
        loss: the end of the forward pass.
        outputs: of the whole graph, whose plan a `MemoryBudget` is about.
        checkpoints: see `Graph.backward`.
    Raises:
        GraphError: a checkpoint is not part of the forward pass, or a word that means nothing.
        MemoryBudgetError: no choice of checkpoints fits.
    """
    outputs = [*outputs]
    remat = Remat(loss, outputs, order or "left")
    if isinstance(checkpoints, MemoryBudget):
        chosen = _Search(remat, outputs, order, checkpoints.matmul).run(checkpoints)
        remat.apply(with_the_rest(chosen, remat.forward))
    elif isinstance(checkpoints, str):
        remat.apply(with_the_rest(_by_word(checkpoints, remat.forward), remat.forward))
    elif checkpoints is not None:
        remat.apply(checkpoints)
    return remat


def _by_word(word: str, forward: list[Tensor]) -> list[Tensor]:
    if word == "all":
        return [*find_boundaries(forward)]
    if word == "sqrt":
        return choose_checkpoints(forward)
    raise GraphError(
        f"backward: got checkpoints {word!r}, want a list, 'sqrt', 'all', a MemoryBudget or None"
    )


class _Search:
    """Tries choices of checkpoints on one graph.

    A choice is a distance between checkpoints, counted in boundaries, and their number: the first
    ones in the order of the forward pass. With each one more, less memory is needed, and more is
    computed again. For the same part of the graph, a larger distance costs more.
    """

    def __init__(
        self, remat: Remat, outputs: list[Tensor], order: Order | None, matmul: Matmul
    ) -> None:
        self._remat, self._outputs = remat, outputs
        self._orders: tuple[Order, ...] = (order,) if order else ("left", "right")
        self._boundaries = [*find_boundaries(remat.forward)]
        self._lowered = Lowered(matmul)
        self._sizes: dict[_Choice, int] = {}
        self._planned: set[_Choice] = set()
        self._known_costs: dict[int, list[float]] = {}

    def run(self, budget: MemoryBudget) -> list[Tensor]:
        """The checkpoints that cost least."""
        limit, choice = budget.nbytes, None
        if budget.spare:
            affordable = 1, self._affordable(budget.spare)
            limit = min(limit, self._bytes(affordable))
            choice = self._cheapest(limit) or affordable
        choice = choice or self._cheapest(limit)
        while choice and self._plan(choice) > budget.nbytes:
            choice = self._cheapest(budget.nbytes)
        if choice is None:
            # More checkpoints may need more memory, by little: what was seen on the way counts.
            choice = self._smallest()
        smallest = self._plan(choice)
        if smallest <= budget.nbytes:
            return self._checkpoints(choice)
        raise MemoryBudgetError(
            f"memory budget: too small: got {budget.nbytes / 2**20:.1f} MiB, want at least "
            f"{smallest / 2**20:.1f} MiB, the least that computing results again comes to. Use a "
            "larger budget, or a smaller batch or context.",
            smallest,
        )

    def _smallest(self) -> _Choice:
        """The leanest choice among those looked at."""
        while (choice := min(self._sizes, key=self._sizes.__getitem__)) not in self._planned:
            self._plan(choice)
        return choice

    def _affordable(self, share: float) -> int:
        """The number of checkpoints, one at each boundary, that a share of all work pays for."""
        spare = share * sum(node.op.cost_of(node).flops for node in self._nodes() if node.op)
        return bisect_right(self._costs(1), spare) - 1

    def _cheapest(self, limit: int) -> _Choice | None:
        """The choice of least work whose size, as far as it is known, is within a limit."""
        if self._bytes((1, 0)) <= limit:
            return 1, 0
        best: _Choice | None = None
        leanest: list[int] = []
        for distance in range(1, len(self._boundaries) + 1):
            most = len(self._boundaries) // distance
            if best:  # only what costs less is of interest now
                most = bisect_left(self._costs(distance), self._costs(best[0])[best[1]]) - 1
            leanest.append(self._bytes((distance, most)))
            if leanest[-1] <= limit:
                best = self._first_within(limit, distance, most)
            recent, before = min(leanest[-_PATIENCE:]), min(leanest[:-_PATIENCE], default=None)
            if before is not None and (recent > limit if best else recent >= before):
                break  # larger distances need more memory, or more work
        return best

    def _first_within(self, limit: int, distance: int, most: int) -> _Choice:
        """The fewest checkpoints within a limit, as so many are at most."""
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            if self._bytes((distance, middle)) <= limit:
                high = middle
            else:
                low = middle + 1
        return distance, low

    def _checkpoints(self, choice: _Choice) -> list[Tensor]:
        distance, n = choice
        return self._boundaries[distance - 1 :: distance][:n]

    def _apply(self, choice: _Choice) -> None:
        self._remat.apply(with_the_rest(self._checkpoints(choice), self._remat.forward))

    def _costs(self, distance: int) -> list[float]:
        """FLOPs of what is computed again, by the number of checkpoints.

        What lies between two of them depends on nothing else that is computed again.
        """
        if distance not in self._known_costs:
            chosen = {*self._boundaries[distance - 1 :: distance]}
            self._apply((distance, len(chosen)))
            again, costs, cost = self._remat.flops, [0.0], 0.0
            for node in self._remat.forward:
                cost += again.get(node, 0.0)
                if node in chosen:
                    costs.append(cost)
            self._known_costs[distance] = costs
        return self._known_costs[distance]

    def _bytes(self, choice: _Choice) -> int:
        """What its plan comes to, or if that is not made yet, what it comes to at least."""
        if choice not in self._sizes:
            self._sizes[choice] = min(
                least_bytes(tasks, self._outputs, workspaces)
                for tasks, workspaces in self._tasks(choice)
            )
        return self._sizes[choice]

    def _plan(self, choice: _Choice) -> int:
        """What the best plan comes to; nearly always the bound, and never less."""
        if choice not in self._planned:
            plan = None
            for tasks, workspaces in self._tasks(choice):
                plan = make_plan(tasks, self._outputs, workspaces, best=plan)
            assert plan is not None
            self._planned.add(choice)
            self._sizes[choice] = plan.own_bytes
        return self._sizes[choice]

    def _tasks(self, choice: _Choice) -> Iterator[tuple[list[Task], list[int]]]:
        """In each order, with the bytes that each task needs for itself."""
        self._apply(choice)
        groups = find_groups(self._nodes(), self._outputs)
        for order in self._orders:
            tasks = make_tasks(self._outputs, groups, order)
            yield tasks, [self._lowered.needs(task).workspace for task in tasks]

    def _nodes(self) -> list[Tensor]:
        return evaluation_order(self._outputs, self._orders[0])
