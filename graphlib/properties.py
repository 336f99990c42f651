"""What an op promises, property by property, on one call that its samples draw.

Each property takes a record and the numbers a call is drawn from, raises `CheckError` where it
does not hold, and returns the worst error, at most, as a part of what rounding can explain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.graphlib import ops, schedule
from yupana.graphlib.compare import CheckError, Expected, check_same_bits
from yupana.graphlib.errors import GradientError, YupanaError
from yupana.graphlib.graph import Graph
from yupana.graphlib.op import Array, Op, as_float64
from yupana.graphlib.order import Order
from yupana.graphlib.reference import recorded_order, run_reference
from yupana.graphlib.sampler import Sampler, redraw
from yupana.graphlib.tensor import Tensor

Trace = Sequence[int]  # the whole numbers a call was drawn from
AnyOp = Op[Any]
Property = Callable[[AnyOp, Trace], float]

_STEP = 1e-5  # of the central difference, in float64
_GRADIENT_TOLERANCE = 1e-6  # relative; what the step leaves of it is about 1e-8
_EXACT = ("copy", "view")  # families that round at most once: the result


def check_errors(op: AnyOp) -> None:
    """Raise unless every error sample fails with the exception and the words it promises."""
    for sample in op.error_samples():
        try:
            sample.run()
        except YupanaError as error:
            if type(error) is not sample.raises or sample.words not in str(error):
                raise CheckError(
                    f"{op.name}: an error sample raised {type(error).__name__}: {error}, want "
                    f"{sample.raises.__name__} with the words {sample.words!r}"
                ) from error
        else:
            raise CheckError(
                f"{op.name}: an error sample raised nothing, want {sample.raises.__name__} with "
                f"the words {sample.words!r}"
            )


def _record(op: AnyOp, trace: Trace, **options: Any) -> tuple[Tensor, Sampler]:
    call, sampler = redraw(op, trace, **options)
    return op(*call.args, **call.kwargs), sampler


def _order(trace: Trace) -> Order:
    """The evaluation order to check a call in: each of them has its share of calls."""
    return "right" if sum(trace) % 2 else "left"


def check_forward(op: AnyOp, trace: Trace) -> float:
    """The result is the reference's, in the dtypes drawn and in float64; leaves keep theirs."""
    return max(_check_values(op, trace), _check_values(op, trace, dtype="f64"))


def check_specials(op: AnyOp, trace: Trace) -> float:
    """Infinities and NaN come out where the reference has them."""
    return _check_values(op, trace, specials=True)


def _check_values(op: AnyOp, trace: Trace, **options: Any) -> float:
    node, _ = _record(op, trace, **options)
    if op.is_view:
        _check_view(node)
    graph = Graph([node], _order(trace))
    factor = 0.0 if op.family in _EXACT else op.tolerance_of(node)
    return Expected(graph).check(op.name, graph.compile(threads=1, fuse=False), factor)


def _check_view(node: Tensor) -> None:
    """What a view's strides see is what its reference says."""
    assert node.op is not None
    seen = run_reference(node)
    want = node.op.reference(*(np.array(seen[src]) for src in node.srcs), **node.params)
    if not np.array_equal(seen[node], as_float64(np.asarray(want)), equal_nan=True):
        raise CheckError(f"{node.op.name}: the view's strides and its reference see other elements")


def check_memory(op: AnyOp, trace: Trace) -> float:
    """The same bits whether or not results share memory, take over a source's or are read late."""
    node, sampler = _record(op, trace, through=ops.cont)
    copies = [t for t in recorded_order([node]) if t.srcs and t.srcs[0] in sampler.leaves]
    for outputs in ([ops.cont(node)], [ops.cont(node), *map(ops.cont, copies)]):
        graph = Graph(outputs, _order(trace))
        check_same_bits(
            op.name, graph, *({"threads": 1, "fuse": False, "reuse": r} for r in (False, True))
        )
    return 0.0


def check_threads(op: AnyOp, trace: Trace) -> float:
    """The same bits at 1, 2 and 3 threads."""
    node, _ = _record(op, trace)
    graph = Graph([node], _order(trace))
    usual = schedule._SOLO_NS
    schedule._SOLO_NS = 0.0  # share steps however small: nothing could differ otherwise
    try:
        check_same_bits(op.name, graph, *({"threads": n, "fuse": False} for n in (1, 2, 3)))
    finally:
        schedule._SOLO_NS = usual
    return 0.0


@dataclass
class _Sum:
    """A weighted sum of an op's result, and the leaves to differentiate it by."""

    loss: Tensor
    result: Tensor
    weights: Array
    params: dict[Tensor, int]  # and the number of the source that each leads to
    tolerance: float  # of the op's node


def check_gradient(op: AnyOp, trace: Trace) -> float:
    """The gradient of each source by projection, in float64; and the program's against it."""
    summed = _weighted_sum(op, trace, dtype="f64")
    if summed is None:
        return 0.0
    graph = Graph([summed.loss], _order(trace))
    grads = graph.backward(summed.loss)
    expected = Expected(graph)
    program = graph.compile(threads=1, fuse=False)
    worst = expected.check(f"{op.name}: gradient", program, summed.tolerance)
    if not op.grad_check:
        return worst
    for param in summed.params:
        found = _check_projection(op, summed, param, expected.values[grads[param]])
        worst = max(worst, found)
    return worst


def check_gradient_f32(op: AnyOp, trace: Trace) -> float:
    """The program's gradients in float32, and in the dtypes drawn, are those of float64."""
    worst = 0.0
    drawn = {leaf.dtype.name for leaf in _record(op, trace)[1].leaves if leaf.dtype.is_float}
    for dtype in ("f32", None) if drawn != {"f32"} else ("f32",):
        summed = _weighted_sum(op, trace, dtype=dtype)
        if summed is None:
            continue
        graph = Graph([summed.loss], _order(trace))
        graph.backward(summed.loss)
        program = graph.compile(threads=1, fuse=False)
        name = f"{op.name}: gradient in float32"
        worst = max(worst, Expected(graph).check(name, program, 2 * summed.tolerance))
    return worst


def _weighted_sum(op: AnyOp, trace: Trace, dtype: str | None) -> _Sum | None:
    """None where the call has nothing to differentiate by. An op without gradient must say so."""
    node, sampler = _record(op, trace, dtype=dtype, smooth=True)
    wide = "f64" if dtype == "f64" else "f32"
    params = {x: k for x, k in _leaves_of(node, sampler) if x.dtype.name == wide}
    if not params or not node.dtype.is_float:
        return None
    for param in params:
        param.is_param = True
    rng = np.random.default_rng(sum(trace))
    # Seen through other strides half of the time: a rule may not count on a contiguous gradient.
    result = ops.transpose(node) if node.ndim > 1 and rng.random() < 0.5 else node
    weights = rng.uniform(-1.0, 1.0, result.shape)
    loss = ops.sum(ops.mul(result, node.context.tensor(weights, wide)))
    if op.vjp is None:
        _check_refusal(op, loss)
        return None
    return _Sum(loss, result, weights, params, op.tolerance_of(node))


def _leaves_of(node: Tensor, sampler: Sampler) -> Iterator[tuple[Tensor, int]]:
    """Leaves drawn that a gradient may lead to, and the source it takes to them."""
    assert node.op is not None
    rules = node.op.vjp
    if rules is not None and len(rules) < len(node.srcs):
        raise CheckError(
            f"{node.op.name}: got {len(rules)} gradient rules for {len(node.srcs)} sources, want "
            "one for each, None where there is no gradient"
        )
    for k, src in enumerate(node.srcs):
        if rules is None or rules[k] is not None:
            made = {src.root, *(s for n in recorded_order([src]) for s in n.srcs)}
            yield from ((leaf, k) for leaf in sampler.leaves if leaf in made)


def _check_refusal(op: AnyOp, loss: Tensor) -> None:
    try:
        Graph([loss]).backward(loss)
    except GradientError as error:
        words = "depends on no parameter" if op.stops_gradient else op.name
        if words not in str(error):
            raise CheckError(f"{op.name}: has no gradient, but the error says: {error}") from error
    else:
        raise CheckError(f"{op.name}: has no gradient, but backward found one")


def _check_projection(op: AnyOp, summed: _Sum, param: Tensor, grad: Array) -> float:
    """<v, gradient> against the central difference of the sum along v; error over allowed."""
    at = param.data.astype(np.float64)
    rng = np.random.default_rng(1)
    along = rng.uniform(0.2, 1.0, at.shape) * rng.choice([-1.0, 1.0], at.shape)
    parts = grad * along
    want = float(parts.sum())

    y, here = summed.result, run_reference(summed.result, {param: at})[summed.result]

    def slope(step: float) -> tuple[Array, Array]:
        """Central difference of each element, and how far those to either side are from it."""
        above, below = (run_reference(y, {param: at + s * along})[y] for s in (step, -step))
        changes, bends = (above - below) / (2 * step), (above - 2 * here + below) / (2 * step)
        changes = np.where(np.isinf(above) & (above == below), 0.0, changes)  # a mask's infinities
        return changes * summed.weights, np.where(np.isfinite(bends), bends * summed.weights, 0.0)

    with np.errstate(invalid="ignore"):
        (wide, _), (narrow, bends) = slope(_STEP), slope(_STEP / 4)
    got = float((16 * narrow - wide).sum() / 15)  # the error of order step^2 cancels
    size = float(np.abs(parts).sum()) + float(np.abs(narrow).sum())
    # Near a pole higher orders count, too; at an edge (of two largest elements) all differences
    # lie between the slopes to either side.
    unsure = 0.2 * float(np.abs(narrow - wide).sum()) + float(np.abs(bends).sum())
    # Results near 1 are known to 1e-16, a quotient of them to 1e-10, and less where terms cancel.
    ratio = abs(got - want) / (_GRADIENT_TOLERANCE * size + unsure + 1e-8)
    if not ratio <= 1:
        raise CheckError(
            f"{op.name}: wrong gradient with respect to source {summed.params[param]}, "
            f"{param.label}: got {want!r} along a direction, want {got!r} by central difference; "
            f"{ratio:.3g} times the error allowed"
        )
    return float(ratio)


PROPERTIES: dict[str, Property] = {
    "forward": check_forward,
    "specials": check_specials,
    "gradient": check_gradient,
    "gradient_f32": check_gradient_f32,
    "memory": check_memory,
    "threads": check_threads,
}
