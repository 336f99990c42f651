"""Searches for the scales of a block's groups, one group to a vector lane; see quants_k.py.

The order of every sum, and each rounding, is that of the definition: lanes are independent, so
nothing is reordered, and a whole block of 256 elements is searched at once. In a table of
elements, `x[i]` has element i of every group.
"""

from collections.abc import Callable
from typing import Any

from yupana.graphlib.kernels.lanes import Cell, Lanes, Table, both, everywhere, where
from yupana.graphlib.kernels.vector import F32, I32, const, loop, vector

TINY = 1e-15  # a group whose largest magnitude is below counts as zeros

Weight = Callable[[Lanes], Lanes]


def square(x: Lanes) -> Lanes:
    """The usual weight of an element: large ones matter."""
    return x * x


def fit_range(
    b: Any, x: Table, weight: Weight, highest: int, first: float, n_steps: int, absolute: bool
) -> tuple[Lanes, Lanes, Table]:
    """Scale, offset and levels in [0, highest] with x near scale · level - offset."""
    zero = x[0].like(0.0)
    low, high = _range(b, x)
    flat = high.equals(low.get())
    lowest = low.get()
    sum_w, sum_x = _sums(b, x, 2, lambda i: [weight(x[i]), weight(x[i]) * x[i]])
    levels, tried = _levels(b, x), _levels(b, x)

    def level(i: Any, steps: Lanes) -> Lanes:
        return (steps * (x[i] - low.get())).nearest().clip(0, highest)

    def error(scale: Lanes, minimum: Lanes, table: Table) -> Lanes:
        def term(i: Any) -> list[Lanes]:
            off = scale * table[i].real() + minimum - x[i]
            return [weight(x[i]) * (off.magnitude() if absolute else off * off)]

        return _sums(b, x, 1, term)[0]

    steps = zero.like(float(highest)) / (high - lowest)
    _fill(b, levels, lambda i: level(i, steps))
    scale = Cell(zero.like(1.0) / steps)
    best = Cell(error(scale.get(), lowest, levels))

    def attempt(step: Any) -> None:
        larger = everywhere(b, b.sitofp(step, F32), x.kind.count) * 0.1
        steps = (larger.like(first) + larger + float(highest)) / (high - low.get())

        def terms(i: Any) -> list[Lanes]:
            tried[i] = level(i, steps)
            w = weight(x[i]) * tried[i].real()
            return [w, w * tried[i].real(), w * x[i]]

        sum_l, sum_l2, sum_xl = _sums(b, x, 3, terms)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        positive = new_low > 0.0
        new_scale = where(positive, sum_xl / sum_l2, new_scale)
        new_low = where(positive, zero, new_low)
        new_error = error(new_scale, new_low, tried)
        better = both(det > 0.0, new_error < best.get())
        with b.if_then(better.any()):
            _fill(b, levels, lambda i: where(better, tried[i], levels[i]))
            best.set_where(better, new_error)
            scale.set_where(better, new_scale)
            low.set_where(better, new_low)  # later steps start from it

    loop(b, const(0), const(n_steps + 1), 1, attempt)
    _fill(b, levels, lambda i: where(flat, levels[i].like(0), levels[i]))
    return where(flat, zero, scale.get()), -where(flat, lowest, low.get()), levels


def fit_scale(b: Any, x: Table, half: int) -> tuple[Lanes, Table]:
    """Scale and levels in [0, 2 half) with x near scale · (level - half), by 19 candidates."""
    extreme, zero = _extreme(b, x), x[0].like(0.0)
    levels, tried = _levels(b, x), _levels(b, x)
    sum_xl, sum_l2 = _scaled_levels(b, x, levels, zero.like(-float(half)) / extreme, half)
    scale = Cell(where(sum_l2.differs(0.0), sum_xl / sum_l2, zero))
    best = Cell(scale.get() * sum_xl)

    def attempt(step: Any) -> None:
        step = b.select(b.icmp_signed("<", step, const(0)), step, b.add(step, const(1)))  # not 0
        count = everywhere(b, b.sitofp(step, F32), x.kind.count) * 0.1
        steps = -(count.like(float(half)) + count) / extreme
        sum_xl, sum_l2 = _scaled_levels(b, x, tried, steps, half)
        better = both(sum_l2 > 0.0, sum_xl * sum_xl > best.get() * sum_l2)
        with b.if_then(better.any()):
            _fill(b, levels, lambda i: where(better, tried[i], levels[i]))
            scale.set_where(better, sum_xl / sum_l2)
            best.set_where(better, scale.get() * sum_xl)

    loop(b, const(-9), const(9), 1, attempt)
    return _from_zero(b, extreme, scale.get(), levels, half)


def fit_stepwise(b: Any, x: Table, half: int) -> tuple[Lanes, Table]:
    """As `fit_scale`, but one level after the other moves to where the scale then fits best."""
    extreme, zero = _extreme(b, x), x[0].like(0.0)
    levels = _levels(b, x)
    first = _scaled_levels(b, x, levels, zero.like(-float(half)) / extreme, half)
    sum_xl, sum_l2 = Cell(first[0]), Cell(first[1])
    active, changed = Cell(zero.equals(0.0)), Cell(zero.equals(0.0))

    def move(i: Any) -> None:
        w = square(x[i])
        old = levels[i].real()
        without_xl, without_l2 = sum_xl.get() - w * x[i] * old, sum_l2.get() - w * old * old
        new = (x[i] * without_l2 / without_xl).nearest().clip(-half, half - 1)
        new_xl = without_xl + w * x[i] * new.real()
        new_l2 = without_l2 + w * new.real() * new.real()
        gain = new_xl * new_xl * sum_l2.get() > sum_xl.get() * sum_xl.get() * new_l2
        better = both(active.get(), without_xl > 0.0, new.differs(levels[i]), new_l2 > 0.0, gain)
        levels[i] = where(better, new, levels[i])
        sum_xl.set_where(better, new_xl)
        sum_l2.set_where(better, new_l2)
        changed.set(Lanes(b, b.or_(changed.get().value, better.value)))

    def improve(_: Any) -> None:
        changed.set(zero.differs(0.0))
        loop(b, const(0), const(x.size), 1, move)
        active.set(both(active.get(), changed.get()))

    loop(b, const(0), const(5), 1, improve)
    scale = where(sum_l2.get() > 0.0, sum_xl.get() / sum_l2.get(), zero)
    return _from_zero(b, extreme, scale, levels, half)


def _levels(b: Any, x: Table) -> Table:
    return Table(b, vector(x.kind.count, I32), x.size)


def _fill(b: Any, table: Table, value: Callable[[Any], Lanes]) -> None:
    loop(b, const(0), const(table.size), 1, lambda i: table.__setitem__(i, value(i)))


def _sums(b: Any, x: Table, n: int, terms: Callable[[Any], list[Lanes]]) -> list[Lanes]:
    """Sums of the n terms at i, over i from left to right."""
    totals = [Cell(x[0].like(0.0)) for _ in range(n)]

    def add(i: Any) -> None:
        for total, term in zip(totals, terms(i), strict=True):
            total.set(total.get() + term)

    loop(b, const(0), const(x.size), 1, add)
    return [total.get() for total in totals]


def _range(b: Any, x: Table) -> tuple[Cell, Lanes]:
    """The least element, at most zero, and the largest."""
    low, high = Cell(x[0]), Cell(x[0])

    def widen(i: Any) -> None:
        low.set(x[i].least(low.get()))
        high.set(x[i].most(high.get()))

    loop(b, const(1), const(x.size), 1, widen)
    low.set(low.get().least(0.0))
    return low, high.get()


def _extreme(b: Any, x: Table) -> Lanes:
    """The element of largest magnitude of each group, the first where several are."""
    size, found = Cell(x[0].like(0.0)), Cell(x[0].like(0.0))

    def look(i: Any) -> None:
        larger = x[i].magnitude() > size.get()
        size.set_where(larger, x[i].magnitude())
        found.set_where(larger, x[i])

    loop(b, const(0), const(x.size), 1, look)
    return found.get()


def _scaled_levels(b: Any, x: Table, levels: Table, steps: Lanes, half: int) -> list[Lanes]:
    """Fill `levels`; the weighted sums of x · level and of level²."""

    def terms(i: Any) -> list[Lanes]:
        levels[i] = (steps * x[i]).nearest().clip(-half, half - 1)
        w, level = square(x[i]), levels[i].real()
        return [w * x[i] * level, w * level * level]

    return _sums(b, x, 2, terms)


def _from_zero(
    b: Any, extreme: Lanes, scale: Lanes, levels: Table, half: int
) -> tuple[Lanes, Table]:
    """Levels counted from zero; groups of zeros have scale and levels 0."""
    empty = extreme.magnitude() < TINY
    _fill(b, levels, lambda i: where(empty, levels[i].like(0), levels[i] + half))
    return where(empty, scale.like(0.0), scale), levels
