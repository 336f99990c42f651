"""How the kernel families see operands: collapsed axes, blocks of elements, dtype conversion.

Kernels compute in float32, or in float64 when an operand is; other dtypes are converted block
by block through the thread's scratch memory. An operand takes `OPERAND_WORDS` words of a record:
dtype code, address, byte stride along the last axis, byte strides along the three outer axes,
and a flag that says its elements follow each other without gaps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import int64, void

from yupana.graphlib.kernels.compiler import FASTMATH, Kernel
from yupana.graphlib.kernels.convert import (
    F32,
    F64,
    I32,
    load_f32,
    load_f64,
    store_f32,
    store_f64,
)
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import f32_array, f64_array, i64_pointer

BLOCK = 512  # elements converted or computed at a time: a few KiB, well inside the L1 cache
CODE, ADDRESS, STEP, OUTER, FLAT = 0, 1, 2, 3, 6
OPERAND_WORDS = 7


@dataclass(frozen=True, slots=True)
class View:
    """Memory of an operand: address, shape, byte strides, dtype code and size in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    code: int
    itemsize: int


def is_wide(views: Sequence[View]) -> bool:
    """Whether to compute in float64: an operand is f64, or i32, which float32 cannot hold."""
    return any(view.code in (F64, I32) for view in views)


def bindings(wide: bool) -> dict[str, Any]:
    """The open names of a template that depend on the type computed in."""
    if wide:
        return {"real": np.float64, "array": f64_array, "ITEMSIZE": 8}
    return {"real": np.float32, "array": f32_array, "ITEMSIZE": 4}


def both_kernels(
    template: Callable[..., None],
    name: str = "",
    fastmath: Iterable[str] = FASTMATH,
    **options: Any,
) -> dict[bool, Kernel]:
    """Kernels that compute in float32 (False) and in float64 (True); see `Kernel`."""
    return {
        wide: Kernel(
            template,
            f"{name}{'f64' if wide else 'f32'}",
            fastmath=fastmath,
            **bindings(wide),
            **options,
        )
        for wide in (False, True)
    }


def padded(words: Sequence[int], n: int, value: int = 0) -> tuple[int, ...]:
    """`words` as the last of `n`, behind as many times `value` as are missing."""
    return (value,) * (n - len(words)) + tuple(words)


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Byte strides of an array without gaps, last axis fastest.

    >>> contiguous_strides((2, 3), 4)
    (12, 4)
    """
    strides = []
    step = itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def broadcast(view: View, shape: tuple[int, ...]) -> View:
    """`view` as NumPy broadcasts it to `shape`: repeated axes get stride 0."""
    missing = len(shape) - len(view.shape)
    strides = [0] * missing + [
        stride if n == wanted else 0
        for n, stride, wanted in zip(view.shape, view.strides, shape[missing:], strict=True)
    ]
    return View(view.address, shape, tuple(strides), view.code, view.itemsize)


def collapse(views: Sequence[View], keep_last: bool = False) -> list[View]:
    """Merge neighbouring axes wherever every view (all of one shape) allows it.

    `keep_last` leaves the last axis alone, for kernels to which a row means something.
    """
    shape = views[0].shape or (1,)
    strides = [view.strides or (view.itemsize,) for view in views]
    axes: list[tuple[int, tuple[int, ...]]] = []  # (size, stride of each view), outermost first
    for axis, n in enumerate(shape):
        step = tuple(s[axis] for s in strides)
        last = axis == len(shape) - 1
        if n == 1 and not (last and keep_last):
            continue
        fits = axes and all(a == s * n for a, s in zip(axes[-1][1], step, strict=True))
        if fits and not (last and keep_last):
            axes[-1] = (axes[-1][0] * n, step)
        else:
            axes.append((n, step))
    if not axes:
        axes = [(1, tuple(view.itemsize for view in views))]
    sizes = tuple(n for n, _ in axes)
    return [
        View(view.address, sizes, tuple(step[k] for _, step in axes), view.code, view.itemsize)
        for k, view in enumerate(views)
    ]


def operand_words(view: View) -> tuple[int, ...]:
    """The record words of a view of one to four axes."""
    outer = padded(view.strides[:-1], 3)
    return (view.code, view.address, view.strides[-1], *outer, int(_is_flat(view)))


def outer_sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Sizes of the second and third axis of a shape padded to four: to decode a row number."""
    _, second, third, _ = padded(shape, 4, 1)
    return second, third


def _is_flat(view: View) -> bool:
    step = view.itemsize
    for n, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


@for_kernels
def row_at(operand, row, s1, s2):
    """Address of row number `row` of the operand whose words are at address `operand`.

    An address, not the constant place in the record: numba compiles a copy of a function for
    every constant it is called with.
    """
    o = i64_pointer(operand)
    if row < s2:
        return o[ADDRESS] + row * o[OUTER + 2]
    i01, i2 = row // s2, row % s2
    i0, i1 = i01 // s1, i01 % s1
    return o[ADDRESS] + i0 * o[OUTER] + i1 * o[OUTER + 1] + i2 * o[OUTER + 2]


def _load_f32(address, step, code, n, out):
    load_f32(address, step, code, n, out)


def _load_f64(address, step, code, n, out):
    load_f64(address, step, code, n, out)


def _store_f32(source, n, code, address, step):
    store_f32(source, n, code, address, step)


def _store_f64(source, n, code, address, step):
    store_f64(source, n, code, address, step)


# Kernels call the conversions by address, from the first words of their record: a copy in every
# kernel would take most of the time to compile it.
_FIVE = void(*[int64] * 5)
_CONVERSIONS = {
    False: (Kernel(_load_f32, signature=_FIVE), Kernel(_store_f32, signature=_FIVE)),
    True: (Kernel(_load_f64, signature=_FIVE), Kernel(_store_f64, signature=_FIVE)),
}
LOAD, STORE, NATIVE, SIZE = 0, 1, 2, 3
HEAD = 4


def head_words(wide: bool) -> tuple[int, int, int, int]:
    """First words of a record: conversions from and to the type computed in, its code and size."""
    load, store = _CONVERSIONS[wide]
    return load.address, store.address, F64 if wide else F32, 8 if wide else 4
