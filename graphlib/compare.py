"""How far a compiled program may lie from the reference, and whether it does.

The tolerance is not guessed from the result: the reference runs a few more times with values
that are off by about one rounding, at the leaves and at every node, and what that changes in
each element of the result is what rounding may change there. A kernel that is wrong by one part
in a thousand stands out wherever it is wrong, and sums that cancel are not blamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from yupana.graphlib.dtypes import QUANTIZED, Dtype, from_storage, to_storage
from yupana.graphlib.errors import YupanaError
from yupana.graphlib.graph import Graph
from yupana.graphlib.op import Array
from yupana.graphlib.order import writers_by_root
from yupana.graphlib.program import Program
from yupana.graphlib.reference import recorded_order, run_reference
from yupana.graphlib.tensor import Tensor

# Largest relative error of rounding to nearest, and what is lost near zero.
_UNIT = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
_TINY = {"f64": 1e-300, "f32": 1e-37, "f16": 2.0**-24, "bf16": 1e-37}
# Quantised types are compared level by level: the definition says every bit.
_UNIT |= dict.fromkeys(QUANTIZED, 0.0)
_TINY |= dict.fromkeys(QUANTIZED, 0.0)
# Noisy runs: in float64, which resolves the least change, and in float32, which rounds within
# the formulas, too.
_NOISY_RUNS = (np.float64,) * 3 + (np.float32,) * 5
# Eight runs give one deviation in a thousand as a third of what it is. Millions of elements are
# compared, so before one is called wrong its deviation is taken from this many times the runs.
_SECOND_LOOK = 12
_NOISE = 6.0  # roundings, at most, that a value is put off by: more than float32 swallows
_FLOOR = 0.15  # roundings of 1: terms of that size may cancel within a kernel
_MARGIN = 8.0  # times the deviation of the noisy runs: kernels round more often than formulas


class CheckError(YupanaError):
    """An op, a kernel or a pass that is not what its record promises."""


def rounding_noise(
    outputs: Sequence[Tensor], values: dict[Tensor, Array], repeats: int = 1
) -> dict[Tensor, Array]:
    """What rounding changes in each element of `outputs`, one standard deviation.

    Args:
        values: of the outputs without rounding.
        repeats: how often to make the eight noisy runs that it is estimated from.
    """
    rng = np.random.default_rng(0)
    nodes = recorded_order(outputs)
    read = {s.root for n in nodes if n.op for k, s in enumerate(n.srcs) if k not in n.op.mutates}
    last = {output.root for output in outputs} - read
    squares = {output: np.zeros(output.shape) for output in outputs}
    with np.errstate(all="ignore"):
        for precision in _NOISY_RUNS * repeats:
            noisy = run_reference(outputs, rounding=_Roundings(rng, last), precision=precision)
            for output in outputs:
                squares[output] += np.square(noisy[output] - values[output])
    scale, floor = _least_noise(values)
    n_runs = repeats * len(_NOISY_RUNS)
    return {o: scale * np.sqrt(s / n_runs) + floor for o, s in squares.items()}


def _least_noise(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """What deviations of the noisy runs are scaled with, and what any result is allowed."""
    if any(t.dtype.name not in ("f64", "i32") for t in tensors):
        return 1.0, _FLOOR * _UNIT["f32"]
    # Where everything is f64 the same happens 29 bits further down; no fault is that small, so
    # 6 of them are given away. Angles of thousands of radians lose more than results near 1.
    return 2.0**-23, 2**14 * _FLOOR * _UNIT["f64"]


class _Roundings:
    """Puts values off by about one rounding when they are stored."""

    def __init__(self, rng: np.random.Generator, last: set[Tensor]) -> None:
        self._rng = rng
        self._last = last  # compared before they are rounded to their dtype
        self._loaded: set[Tensor] = set()

    def __call__(self, tensor: Tensor, values: Array) -> Array:
        # Kernels compute in f32 or f64. Half types round once more when a result is stored, but
        # not when a leaf is first read.
        unit = _UNIT["f32"]
        if tensor.is_leaf and tensor not in self._loaded:
            self._loaded.add(tensor)
        elif tensor not in self._last:
            unit = max(unit, _UNIT.get(tensor.dtype.name, 0.0))
        return values * (1.0 + unit * self._rng.uniform(-_NOISE, _NOISE, values.shape))


def differences(
    got: Array, want: Array, noise: Array | float, dtype: Dtype, factor: float
) -> Array:
    """Error of each element over what is allowed: right at most 1, infinite for a wrong NaN."""
    with np.errstate(all="ignore"):
        stored = want  # the reference has cut quantised values to levels already
        if not dtype.is_quantized:
            stored = from_storage(to_storage(want, dtype), dtype).astype(np.float64)
        got = got.astype(np.float64)
        noise = np.where(np.isfinite(noise), noise, 0.0)
        unit, tiny = _UNIT.get(dtype.name, 0.0), _TINY.get(dtype.name, 0.0)
        allowed = factor * _MARGIN * noise + 1.01 * unit * np.abs(want) + tiny
        if not dtype.is_real:
            allowed = np.full(want.shape, 0.5)
        ratio = np.abs(got - want) / allowed
    same = (got == stored) | (np.isnan(got) & np.isnan(stored))
    ratio = np.where(np.isfinite(stored) & np.isfinite(got), ratio, np.inf)
    return np.asarray(np.where(same, 0.0, ratio))


class Leaves:
    """The leaves of a graph as they were, to be put back after each run of a program."""

    def __init__(self, graph: Graph) -> None:
        self._before = {leaf: leaf.data.copy() for leaf in graph.leaves}
        written = writers_by_root(graph.nodes)
        # In the order they were made: graphs of other evaluation orders meet them in others.
        self.written = sorted(written.keys() & self._before.keys(), key=lambda leaf: leaf.sequence)

    def restore(self) -> None:
        """Put their values back."""
        for leaf, values in self._before.items():
            leaf.data[...] = values

    def check_untouched(self, what: str) -> None:
        """Raise if a leaf that no node writes to has changed."""
        for leaf, values in self._before.items():
            if leaf not in self.written and leaf.data.tobytes() != values.tobytes():
                raise CheckError(f"{what}: the program changed a leaf it only reads: {leaf.label}")


class Expected:
    """What a graph's outputs, and the leaves it writes to, must hold after a run."""

    def __init__(self, graph: Graph) -> None:
        self._leaves = Leaves(graph)
        self._tensors = [*graph.outputs, *self._leaves.written]
        self.values = run_reference(self._tensors)

    @cached_property
    def _noise(self) -> dict[Tensor, Array]:
        return rounding_noise(self._tensors, self.values)

    @cached_property
    def _better_noise(self) -> dict[Tensor, Array]:
        return rounding_noise(self._tensors, self.values, _SECOND_LOOK)

    def check(self, what: str, program: Program, factor: float = 1.0) -> float:
        """Run a program of the graph, compare, and put the leaves back as they were.

        Args:
            factor: how much more than usual an error may be.
        Returns:
            The worst error as a part of what is allowed, or an upper bound of that.
        Raises:
            CheckError: a value differs, or its shape or dtype is not what its rule said, or a
            leaf has changed that no node writes to.
        """
        program.run()
        self._leaves.restore()
        program.run()  # not into fresh zeros, but over the results of the first run
        found = [np.array(t.numpy()) if t.is_leaf else program.value(t) for t in self._tensors]
        self._leaves.check_untouched(what)
        self._leaves.restore()
        errors = map(lambda t, got: self._compare(what, t, got, factor), self._tensors, found)
        return max(errors, default=0.0)

    def _compare(self, what: str, tensor: Tensor, got: Array, factor: float) -> float:
        check_kind(what, tensor, got)
        want = self.values[tensor]
        noise: Array | float = _least_noise(self.values)[1]
        ratio = differences(got, want, noise, tensor.dtype, factor)
        if factor and ratio.max(initial=0.0) > 1:  # else what rounding did does not matter
            ratio = differences(got, want, self._noise[tensor], tensor.dtype, factor)
            if ratio.max(initial=0.0) > 1:
                ratio = differences(got, want, self._better_noise[tensor], tensor.dtype, factor)
        worst = float(ratio.max(initial=0.0))
        if worst > 1:
            raise CheckError(_report(what, tensor, got, want, ratio))
        return worst


def check_kind(what: str, tensor: Tensor, got: Array) -> None:
    """Raise unless an array has the shape and dtype of the tensor it is the value of."""
    dtype = tensor.dtype
    as_f32 = dtype.name == "bf16" or dtype.is_quantized
    stored = np.dtype(np.float32) if as_f32 else dtype.storage
    if got.shape != tensor.shape or got.dtype != stored:
        raise CheckError(
            f"{what}: got {got.dtype}{got.shape}, want {tensor.dtype}{tensor.shape} as its rule "
            "says"
        )


def _report(what: str, tensor: Tensor, got: Array, want: Array, ratio: Array) -> str:
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    place = f" at {[int(k) for k in at]}" if at else ""
    return (
        f"{what}: {tensor.label} differs from the reference: got {float(got[at])!r}{place}, want "
        f"{float(want[at])!r} as {tensor.dtype}; {float(ratio[at]):.3g} times the error allowed, "
        f"{int((ratio > 1).sum())} of {ratio.size} elements wrong"
    )


def bits(graph: Graph, runs: int = 3, **options: Any) -> list[bytes]:
    """Outputs, and leaves the graph writes to, byte by byte after a run; leaves are restored.

    Args:
        runs: how often to run, each time from the same leaves.
        options: of `Graph.compile`.

    Raises:
        CheckError: two runs differ.
    """
    leaves = Leaves(graph)
    program = graph.compile(**options)
    found: list[bytes] = []
    for _ in range(runs):
        program.run()
        before = found
        found = [program.value(output).tobytes() for output in graph.outputs]
        found += [leaf.data.tobytes() for leaf in leaves.written]
        leaves.restore()
        if before and found != before:
            raise CheckError(f"program: two runs from the same leaves differ, with {options}")
    return found


def check_same_bits(what: str, graph: Graph, *variants: Mapping[str, Any]) -> None:
    """Raise unless a graph compiled with each of the given options leaves the same bytes."""
    first = bits(graph, **variants[0])
    for options in variants[1:]:
        if bits(graph, **options) != first:
            raise CheckError(f"{what}: other bits with {dict(options)} than {dict(variants[0])}")
