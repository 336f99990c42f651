"""Blocks of IQ4_NL and IQ4_XS written from float32, as LLVM IR; the definition is quants_iq.py.

All sixteen scales of a group that are tried are tried at once, one to a vector lane.
"""

from itertools import pairwise
from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.lanes import Cell, Lanes, Table, both, read, where, write
from yupana.graphlib.kernels.quant_fit import TINY, square
from yupana.graphlib.kernels.quant_put import I8, at_byte, inverse_of, put_half, put_levels
from yupana.graphlib.kernels.vector import F32, I16, const, loop, vector, zeros
from yupana.graphlib.quants_iq import EDGES, LEVELS, TRIES

_GROUP = 32
_CANDIDATES = 2 * TRIES + 2


def put_iq4_nl(b: Any, source: Any, block: Any) -> None:
    """Write 32 elements at address `source` as a block."""
    scale = _fit(b, source)
    put_half(b, scale, block, 0)
    _put_group(b, source, scale, block, 2)


def put_iq4_xs(b: Any, source: Any, block: Any) -> None:
    """Write 256 elements at address `source` as a block."""
    eight = Table(b, vector(8), 1)

    def fit(k: Any) -> None:
        place = b.add(eight.address, b.mul(k, const(4)))
        write(_fit(b, b.add(source, b.mul(k, const(4 * _GROUP)))), place)

    loop(b, const(0), const(8), 1, fit)
    scales = read(b, F32, 8, eight.address)
    unit = -scales.extreme() / 32.0
    put_half(b, unit, block, 0)
    steps = (inverse_of(unit) * scales).nearest().clip(-32, 31)
    eight[0] = unit * steps.real()

    def put(k: Any) -> None:
        scale = read(b, F32, 1, b.add(eight.address, b.mul(k, const(4))))
        group = b.add(source, b.mul(k, const(4 * _GROUP)))
        _put_group(b, group, scale, b.add(block, b.mul(k, const(_GROUP // 2))), 8)

    loop(b, const(0), const(8), 1, put)
    six = steps + 32
    places = Lanes(b, ir.Constant(six.kind, list(range(0, 16, 2))))
    write(((six >> 4) << places).sum().narrow(I16), at_byte(b, block, 2))
    four = six.narrow(I8) & 15
    write(four.part([0, 2, 4, 6]) | (four.part([1, 3, 5, 7]) << 4), at_byte(b, block, 4))


def _fit(b: Any, source: Any) -> Lanes:
    """One lane: the scale of the 32 elements at `source`."""
    extreme = read(b, F32, _GROUP, source).extreme().part([0] * _CANDIDATES)
    first = Lanes(b, ir.Constant(vector(_CANDIDATES, ir.IntType(1)), [1] + [0] * (2 * TRIES + 1)))
    others = [float(step + LEVELS[0]) for step in range(-TRIES, TRIES + 1)]
    counts = Lanes(b, ir.Constant(extreme.kind, [0.0, *others]))
    one = extreme.like(1.0)
    inverse = where(first, one / (-extreme / float(LEVELS[0])), counts / extreme)
    sum_xl, sum_l2 = (Cell(Lanes(b, zeros(extreme.kind))) for _ in range(2))

    def add(i: Any) -> None:
        element = b.add(source, b.mul(i, const(4)))
        x = read(b, F32, 1, element).part([0] * _CANDIDATES)
        level = _stepped(inverse * x, LEVELS[0], [high - low for low, high in pairwise(LEVELS)])
        weighted = square(x) * level
        sum_xl.set(sum_xl.get() + weighted * x)
        sum_l2.set(sum_l2.get() + weighted * level)

    loop(b, const(0), const(_GROUP), 1, add)
    ratios = sum_xl.get() / sum_l2.get()
    gains = ratios * sum_xl.get()
    scale, best = ratios.part([0]), gains.part([0])
    for k in range(1, _CANDIDATES):
        xl, l2 = sum_xl.get().part([k]), sum_l2.get().part([k])
        better = both(l2 > 0.0, xl * xl > best * l2)
        scale = where(better, ratios.part([k]), scale)
        best = where(better, gains.part([k]), best)
    return where(extreme.part([0]).magnitude() < TINY, scale.like(0.0), scale)


def _stepped(x: Lanes, start: int, rises: list[int]) -> Lanes:
    """A number that begins with `start` and rises at each edge that `x` is not below."""
    found = x.like(float(start))
    for edge, rise in zip(EDGES, rises, strict=True):
        found = found + where(x < edge, x.like(0.0), x.like(float(rise)))
    return found


def _put_group(b: Any, source: Any, scale: Lanes, block: Any, at: int) -> None:
    """Write the numbers of the levels that are nearest with a scale, 16 bytes."""
    x = read(b, F32, _GROUP, source) * inverse_of(scale).part([0] * _GROUP)
    put_levels(b, _stepped(x, 0, [1] * len(EDGES)).whole().narrow(I8), block, at)
