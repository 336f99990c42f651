"""Writing into memory that exists: all of a tensor, or a region of a copy."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import ShapeError
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_float
from yupana.graphlib.ops._rules import view as as_view
from yupana.graphlib.ops.clip import fill
from yupana.graphlib.ops.copies import contiguous, lower_copy
from yupana.graphlib.ops.reduction import copy_steps
from yupana.graphlib.ops.views import last_byte, part_of, reshape, view
from yupana.graphlib.tensor import Tensor

_add = Map(lambda a, b, p0, p1, p2, p3: a + b, 2)


def _cpy_sample(d: Draw) -> Call:
    shape = d.shape()
    usual = ("f32", "f32", "f16", "bf16")
    if d.integer(0, 3) < 3:
        return call(d.floats(shape), d.floats(shape))
    whole = ("i8", "i16", "i32")
    return call(d.floats(shape, dtypes=(*usual, *whole)), d.floats(shape, dtypes=whole))


@op(
    lower=lower_copy,
    vjp=(lambda y, g: reshape(contiguous(g), y.srcs[0].shape), None),
    reference=lambda a, b: a.reshape(b.shape),
    samples=_cpy_sample,
    error_samples=lambda: [
        ErrorSample(lambda: cpy(tensor([1.0]), tensor([1.0, 2.0])), ShapeError, "(1,) and (2,)")
    ],
    mutates=(1,),
    cost=0.0,
    family="copy",
)
def cpy(a: Tensor, b: Tensor) -> Result:
    """Write `a` into the memory of `b`, converting; the result is a view of `b`.

    Readers of `b` recorded before this run before it, readers of the result after it.
    Gradient: with respect to `a`; none reaches `b`. Source: ggml_cpy.

    >>> import yupana
    >>> cache = tensor([0.0, 0.0])
    >>> yupana.Graph(cpy(tensor([1.0, 2.0]), cache)).compile().run()
    >>> cache.numpy()
    array([1., 2.], dtype=float32)
    """
    if a.shape != b.shape:
        raise ShapeError(f"cpy: shapes differ: got {a.shape} and {b.shape}, want the same")
    return Result((a, b), b.shape, b.dtype, {}, b.strides, 0, b)


def _region_sample(d: Draw) -> Call:
    rows, columns = d.integer(2, 6), d.integer(2, 6)
    top, left = d.integer(0, rows - 1), d.integer(0, columns - 1)
    shape = (d.integer(1, rows - top), d.integer(1, columns - left))
    a = d.floats((rows, columns))
    size = a.dtype.itemsize
    return call(a, d.floats(shape), (columns * size, size), (top * columns + left) * size)


def _region(name: str, a: Tensor, b: Tensor, strides: tuple[int, ...], offset: int) -> Result:
    need_float(name, a, b)
    size = a.dtype.itemsize
    end = offset + last_byte(b.shape, strides, size)
    if len(strides) != b.ndim or end > a.nbytes or any(s % size for s in (*strides, offset)):
        raise ShapeError(
            f"{name}: region does not fit: got {b.shape} with strides {strides} at {offset}, "
            f"want it within the {a.nbytes} bytes of {a.label}"
        )
    params = {"strides": tuple(strides), "offset": offset, "itemsize": size}
    return Result((a, b), a.shape, a.dtype, params)


def _lower_region(site: Site, adds: bool) -> list[Step]:
    dst, a, b = (as_view(o) for o in (site.dst, *site.srcs))
    part = part_of(dst, b.shape, site.params["strides"], site.params["offset"])
    first = [] if dst.address == a.address else copy_steps(dst, a)
    return first + (_add.steps(part, [part, b]) if adds else copy_steps(part, b))


def _region_reference(adds: bool) -> object:
    def reference(
        a: Array, b: Array, strides: tuple[int, ...], offset: int, itemsize: int
    ) -> Array:
        out = np.ascontiguousarray(a).copy().reshape(-1)
        steps = tuple(s // itemsize * out.itemsize for s in strides)
        part = np.lib.stride_tricks.as_strided(out[offset // itemsize :], b.shape, steps)
        part[...] = part + b if adds else b
        return out.reshape(a.shape)

    return reference


def _place_in(y: Tensor, g: Tensor) -> tuple[tuple[int, ...], int]:
    """Strides and offset of the region in the gradient, whose elements may have another size."""
    size, ratio = g.dtype.itemsize, y.params["itemsize"]
    strides = tuple(s // ratio * size for s in y.params["strides"])
    return strides, y.params["offset"] // ratio * size


def _region_of(y: Tensor, g: Tensor) -> Tensor:
    return view(contiguous(g), y.srcs[1].shape, *_place_in(y, g))


def _outside(y: Tensor, g: Tensor) -> Tensor:
    """The gradient with the region that was overwritten set to zero."""
    return set(contiguous(g), fill(y.srcs[1], 0.0), *_place_in(y, g))


@op(
    lower=lambda site: _lower_region(site, adds=True),
    vjp=(lambda y, g: g, _region_of),
    reference=_region_reference(adds=True),
    samples=_region_sample,
    error_samples=lambda: [
        ErrorSample(lambda: acc(tensor([1.0]), tensor([1.0, 2.0]), (4,), 0), ShapeError, "fit")
    ],
    inplace=(0,),
    family="copy",
)
def acc(a: Tensor, b: Tensor, strides: tuple[int, ...], offset: int = 0) -> Result:
    """A copy of `a` with `b` added to the region `strides` and `offset` (bytes) describe.

    Gradient: with respect to both. Source: ggml_acc.

    >>> acc(tensor([1.0, 1.0, 1.0]), tensor([5.0]), (4,), 4).numpy()
    array([1., 6., 1.], dtype=float32)
    """
    return _region("acc", a, b, strides, offset)


@op(
    lower=lambda site: _lower_region(site, adds=False),
    vjp=(_outside, _region_of),
    reference=_region_reference(adds=False),
    samples=_region_sample,
    error_samples=lambda: [
        ErrorSample(lambda: set(tensor([1.0]), tensor([1.0, 2.0]), (4,), 0), ShapeError, "fit")
    ],
    inplace=(0,),
    family="copy",
)
def set(a: Tensor, b: Tensor, strides: tuple[int, ...], offset: int = 0) -> Result:
    """A copy of `a` with `b` written over the region `strides` and `offset` (bytes) describe.

    Gradient: with respect to both. Source: ggml_set.

    >>> set(tensor([1.0, 1.0, 1.0]), tensor([5.0]), (4,), 4).numpy()
    array([1., 5., 1.], dtype=float32)
    """
    return _region("set", a, b, strides, offset)
