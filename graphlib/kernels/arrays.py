"""Kernels of whole arrays: the author's function gets the result and the sources as arrays."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from numba import carray

from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import (
    f32_pointer,
    f64_pointer,
    f64_words,
    i32_pointer,
    i64_pointer,
)
from yupana.graphlib.kernels.step import Step, float_word

MAX_IN = 4
_AXES = 4
N_PARAMS = 8
# Record: parameters; then for each array its address and shape.
_ARRAYS, _ARRAY_WORDS = N_PARAMS, 1 + _AXES
# Names that a Kernel binds: the author's function, and how an array of each operand is made.
function: Any = None
a0: Any = None
a1: Any = None
a2: Any = None
a3: Any = None
a4: Any = None


class Arrays:
    """An operation on whole arrays.

    Args:
        function: (y, x0, …, begin, end, p). Arrays are contiguous, of their tensors' dtypes (f32,
            f64 or i32) and axes (one where the tensor has none); `p` is an array of float64.
        n_in: number of sources, 1 to 4.
        split: let threads share the first axis of `y`: a call fills its part [begin, end).
            Otherwise there is one call, and begin and end say nothing.
        ns: predicted time per element of the largest array.
    """

    def __init__(
        self, function: Callable[..., Any], n_in: int, split: bool = False, ns: float = 1.0
    ) -> None:
        self._n_in = n_in
        self._function = function
        self._split = split
        self._ns = ns
        self._kernels: dict[tuple[tuple[int, int], ...], Kernel] = {}

    def steps(self, dst: View, srcs: Sequence[View], params: Sequence[float] = ()) -> list[Step]:
        """The one step that computes `dst`; all operands are contiguous."""
        views = [dst, *srcs]
        kinds = tuple((len(view.shape) or 1, view.code) for view in views)
        if kinds not in self._kernels:
            self._kernels[kinds] = self._specialised(kinds)
        kernel = self._kernels[kinds]
        record = [*map(float_word, params), *[0] * (N_PARAMS - len(params))]
        for view in views:
            shape = view.shape or (1,)
            record += [view.address, *shape, *[0] * (_AXES - len(shape))]
        n = (dst.shape or (1,))[0]
        if math.prod(dst.shape) == 0:
            return []
        ns = self._ns * max(math.prod(view.shape) for view in views)
        return [Step(kernel, tuple(record), n if self._split else 1, ns)]

    def _specialised(self, kinds: tuple[tuple[int, int], ...]) -> Kernel:
        makers = {f"a{k}": _MAKERS[kind] for k, kind in enumerate(kinds)}
        label = "_".join(f"{axes}{'fhdbi'[code]}" for axes, code in kinds)
        template = _TEMPLATES[self._n_in - 1]
        name = f"{self._function.__name__.strip('<>_')}_{label}"
        return Kernel(template, name, fastmath=(), inline=False, function=self._function, **makers)


def _maker(pointer: Any, axes: int) -> Any:
    """Compiled function that makes an array of what a record says from word `at` on."""
    if axes == 1:

        def make(r, at):
            return carray(pointer(r[at]), (r[at + 1],))
    elif axes == 2:

        def make(r, at):
            return carray(pointer(r[at]), (r[at + 1], r[at + 2]))
    elif axes == 3:

        def make(r, at):
            return carray(pointer(r[at]), (r[at + 1], r[at + 2], r[at + 3]))
    else:

        def make(r, at):
            return carray(pointer(r[at]), (r[at + 1], r[at + 2], r[at + 3], r[at + 4]))

    return for_kernels(make)


_MAKERS = {
    (axes, code): _maker(pointer, axes)
    for axes in range(1, _AXES + 1)
    for code, pointer in ((0, f32_pointer), (2, f64_pointer), (4, i32_pointer))
}
_Y, _X0, _X1, _X2, _X3 = (_ARRAYS + k * _ARRAY_WORDS for k in range(MAX_IN + 1))


def arrays1(record, begin, end, scratch):
    """Functions of one source."""
    r, p = i64_pointer(record), f64_words(record, N_PARAMS)
    function(a0(r, _Y), a1(r, _X0), begin, end, p)


def arrays2(record, begin, end, scratch):
    """Functions of two sources."""
    r, p = i64_pointer(record), f64_words(record, N_PARAMS)
    function(a0(r, _Y), a1(r, _X0), a2(r, _X1), begin, end, p)


def arrays3(record, begin, end, scratch):
    """Functions of three sources."""
    r, p = i64_pointer(record), f64_words(record, N_PARAMS)
    function(a0(r, _Y), a1(r, _X0), a2(r, _X1), a3(r, _X2), begin, end, p)


def arrays4(record, begin, end, scratch):
    """Functions of four sources."""
    r, p = i64_pointer(record), f64_words(record, N_PARAMS)
    function(a0(r, _Y), a1(r, _X0), a2(r, _X1), a3(r, _X2), a4(r, _X3), begin, end, p)


_TEMPLATES = (arrays1, arrays2, arrays3, arrays4)
