"""Kernels for ops outside the library, from plain functions that numba can compile.

Each function here makes the `lower` of an op's record; see docs/custom_ops.md.
"""

import inspect
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

from yupana.graphlib.dtypes import f32
from yupana.graphlib.errors import GraphError, SettingError
from yupana.graphlib.kernels import arrays, elementwise, rowwise
from yupana.graphlib.kernels.blocks import View, contiguous_strides
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Lower, Site
from yupana.graphlib.ops._rules import view
from yupana.graphlib.ops.reduction import copy_steps

# In formulas and row functions the type computed in, which the kernel binds: constants are
# written real(0.5), since numba takes 0.5 for a float64.
real: Any = float

_ARRAY_CODES = (0, 2, 4)  # dtypes that numba has: f32, f64, i32


def per_element(function: Callable[..., Any], params: Sequence[str] = ()) -> Lower:
    """A kernel from the formula of one element; sources are broadcast together.

    Args:
        function: (x0, …, parameters …) -> number, of 1 to 3 sources.
        params: names of the node's parameters that it takes, at most 4 numbers.
    Raises:
        SettingError: the function takes another number of arguments.
    """
    n_in = _count(function, len(params), "sources, then parameters", 3)
    if len(params) > 4:
        raise SettingError(f"per_element: got {len(params)} parameters, want at most 4")
    sources = [f"x{k}" for k in range(n_in)]
    taken = [f"p{k}" for k in range(4)]
    formula = _adapted(function, [*sources, *taken], [*sources, *taken[: len(params)]])
    mapping = elementwise.Map(formula, n_in)

    def lower(site: Site) -> list[Step]:
        return mapping.steps(view(site.dst), _sources(function, site, n_in), _numbers(site, params))

    return lower


def per_row(function: Callable[..., Any], params: Sequence[str] = ()) -> Lower:
    """A kernel from what happens to one row (the last axis); the axes before are broadcast.

    Args:
        function: (y, x0, …, i, p), of 1 to 4 sources, fills the row `y` from rows of the
            sources. Rows are contiguous, of float32 or float64 as the kernel computes; `i` is the
            number of the row in its matrix, `p` the parameters as an array of float64.
        params: names of the node's parameters, at most 8 numbers.
    Raises:
        SettingError: the function takes another number of arguments.
    """
    n_in = _count(function, 3, "y, sources, i, p", 4)
    rows = rowwise.Rows(function, n_in)

    def lower(site: Site) -> list[Step]:
        return rows.steps(view(site.dst), _sources(function, site, n_in), _numbers(site, params))

    return lower


def per_array(
    function: Callable[..., Any], params: Sequence[str] = (), split: bool = False
) -> Lower:
    """A kernel from a function of whole arrays.

    Args:
        function: (y, x0, …, p), of 1 to 4 sources, fills the array `y`; with `split`
            (y, x0, …, begin, end, p). Arrays are contiguous and have the axes of their tensors
            (one where there are none), float64 for f64, int32 for i32, else float32. `p` holds
            the parameters as float64.
        params: names of the node's parameters, at most 8 numbers.
        split: let threads share the first axis of `y`; a call then fills y[begin:end] only.
    Raises:
        SettingError: the function takes another number of arguments.
    """
    tail = ["begin", "end", "p"] if split else ["p"]
    n_in = _count(function, 1 + len(tail), f"y, sources, {', '.join(tail)}", arrays.MAX_IN)
    given = ["y", *(f"x{k}" for k in range(n_in))]
    whole = _adapted(function, [*given, "begin", "end", "p"], [*given, *tail])
    kernel = arrays.Arrays(whole, n_in, split)

    def lower(site: Site) -> list[Step]:
        steps: list[Step] = []
        sources = []
        for src in _sources(function, site, n_in):
            near = src if _is_plain(src) else _spare(src, site)
            steps += [] if near is src else copy_steps(near, src)
            sources.append(near)
        dst = view(site.dst)
        result = dst if _is_plain(dst) else _spare(dst, site)
        steps += kernel.steps(result, sources, _numbers(site, params))
        return steps if result is dst else steps + copy_steps(dst, result)

    return lower


def _count(function: Callable[..., Any], others: int, wanted: str, most: int) -> int:
    """Number of sources that a function takes beside `others` arguments."""
    names = list(inspect.signature(function).parameters)
    n_in = len(names) - others
    if not 1 <= n_in <= most:
        raise SettingError(
            f"{function.__name__}: got arguments ({', '.join(names)}), want ({wanted}) with 1 to "
            f"{most} sources"
        )
    return n_in


def _adapted(
    function: Callable[..., Any], taken: Sequence[str], passed: Sequence[str]
) -> Callable[..., Any]:
    """A function of the arguments `taken` that calls `function` with those `passed`."""
    text = f"lambda {', '.join(taken)}: adapted({', '.join(passed)})"
    code = next(c for c in compile(text, __file__, "eval").co_consts if hasattr(c, "co_code"))
    return types.FunctionType(code, {"adapted": function}, function.__name__)


def _sources(function: Callable[..., Any], site: Site, n_in: int) -> list[View]:
    if len(site.srcs) != n_in:
        raise GraphError(
            f"{function.__name__}: got a node of {len(site.srcs)} sources, want the {n_in} that "
            "the kernel takes"
        )
    return [view(src) for src in site.srcs]


def _numbers(site: Site, params: Sequence[str]) -> list[float]:
    return [float(site.params[name]) for name in params]


def _is_plain(x: View) -> bool:
    return x.code in _ARRAY_CODES and x.strides == contiguous_strides(x.shape, x.itemsize)


def _spare(x: View, site: Site) -> View:
    """Room for a contiguous copy, as float32 where numba does not have the dtype."""
    code, size = (x.code, x.itemsize) if x.code in _ARRAY_CODES else (f32.code, f32.itemsize)
    room = site.workspace(math.prod(x.shape) * size)
    return View(room, x.shape, contiguous_strides(x.shape, size), code, size)
