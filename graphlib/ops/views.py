"""Views, which only look at memory, and the gradient of looking at a part."""

import numpy as np

from yupana.graphlib.context import check_shape, tensor
from yupana.graphlib.dtypes import f64
from yupana.graphlib.errors import GradientError, ShapeError
from yupana.graphlib.kernels.blocks import View, contiguous_strides
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_axes, need_float, need_whole_rows
from yupana.graphlib.ops._rules import view as as_view
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.ops.reduction import copy_steps
from yupana.graphlib.tensor import Tensor


def _strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Array:
    """The elements a view sees; strides and offset in elements of a contiguous `x`."""
    flat = np.ascontiguousarray(x).reshape(-1)[offset:]
    steps = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()


def _reshape_sample(d: Draw) -> Call:
    shape = d.shape(max_axes=3, max_side=4)
    last = int(np.prod(shape))
    target = d.choice([(last,), (1, last), tuple(reversed(shape)), (*shape, 1)])
    return call(d.floats(shape, layouts=("contiguous",)), target)


def reshape_to(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with a -1 worked out."""
    if -1 not in shape:
        return check_shape("reshape", shape)
    known = int(np.prod([n for n in shape if n != -1]))
    free = x.size // known if known else 0
    return check_shape("reshape", tuple(free if n == -1 else n for n in shape))


@op(
    vjp=(lambda y, g: reshape(contiguous(g), y.srcs[0].shape),),
    reference=lambda x, shape: x.reshape(shape),
    samples=_reshape_sample,
    error_samples=lambda: [
        ErrorSample(lambda: reshape(tensor([1.0, 2.0]), (3,)), ShapeError, "(2,) to (3,)"),
        ErrorSample(
            lambda: reshape(transpose(tensor(np.ones((2, 3)))), (6,)), ShapeError, "contiguous"
        ),
    ],
    family="view",
)
def reshape(x: Tensor, shape: tuple[int, ...]) -> Result:
    """Look at the same elements with another shape; one size may be -1.

    Args:
        x: contiguous (otherwise pass `cont(x)`).
    Raises:
        ShapeError: the number of elements differs, or `x` is not contiguous.
    Gradient: with respect to `x`. Source: ggml_reshape.

    >>> reshape(tensor([1.0, 2.0, 3.0, 4.0]), (2, -1)).numpy()
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    target = reshape_to(x, tuple(shape))
    if int(np.prod(target)) != x.size:
        raise ShapeError(f"reshape: got {x.shape} to {target}, want as many elements: {x.size}")
    if not x.is_contiguous:
        raise ShapeError(
            f"reshape: {x.label} is not contiguous: got strides {x.strides}. "
            "Use reshape(cont(x), shape)."
        )
    x.dtype.check_shape("reshape", target)
    return Result((x,), target, x.dtype, {"shape": target})


def _axes_sample(d: Draw) -> Call:
    shape = d.shape(min_axes=2)
    axes = list(range(len(shape)))
    swap = [d.integer(0, k) for k in range(len(axes))]
    for k, other in enumerate(swap):
        axes[k], axes[other] = axes[other], axes[k]
    return call(d.floats(shape), tuple(axes))


@op(
    vjp=(lambda y, g: permute(g, tuple(int(k) for k in np.argsort(y.params["axes"]))),),
    reference=lambda x, axes: x.transpose(axes),
    samples=_axes_sample,
    error_samples=lambda: [
        ErrorSample(lambda: permute(tensor([[1.0]]), (0, 0)), ShapeError, "each axis once")
    ],
    family="view",
)
def permute(x: Tensor, axes: tuple[int, ...]) -> Result:
    """Reorder axes as NumPy's transpose: axis k of the result is axis `axes[k]` of `x`.

    ggml_permute counts from the fastest axis and gives the inverse order.
    Gradient: with respect to `x`. Source: ggml_permute.

    >>> permute(tensor([[[1.0, 2.0]]]), (2, 0, 1)).shape
    (2, 1, 1)
    """
    axes = tuple(int(a) for a in axes)
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"permute: got axes {axes} for shape {x.shape}, want each axis once")
    need_whole_rows("permute", x, axes[-1:] == (x.ndim - 1,))
    strides = tuple(x.strides[a] for a in axes)
    return Result((x,), tuple(x.shape[a] for a in axes), x.dtype, {"axes": axes}, strides)


@op(
    vjp=(lambda y, g: transpose(g),),
    reference=lambda x: np.swapaxes(x, -1, -2),
    samples=lambda d: call(d.floats(d.shape(min_axes=2))),
    error_samples=lambda: [ErrorSample(lambda: transpose(tensor([1.0])), ShapeError, "2 axes")],
    family="view",
)
def transpose(x: Tensor) -> Result:
    """Swap the last two axes.

    Gradient: with respect to `x`. Source: ggml_transpose.

    >>> transpose(tensor([[1.0, 2.0]])).shape
    (2, 1)
    """
    need_axes("transpose", x, 2)
    need_whole_rows("transpose", x, whole=False)
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    strides = (*x.strides[:-2], x.strides[-1], x.strides[-2])
    return Result((x,), shape, x.dtype, strides=strides)


def _view_sample(d: Draw) -> Call:
    rows, columns = d.integer(2, 6), d.integer(2, 6)
    top, left = d.integer(0, rows - 1), d.integer(0, columns - 1)
    shape = (d.integer(0, rows - top), d.integer(1, columns - left))
    x = d.floats((rows, columns), dtypes=("f32",), layouts=("contiguous",))
    size = x.dtype.itemsize
    return call(x, shape, (columns * size, size), (top * columns + left) * size)


def _view_reference(
    x: Array, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, itemsize: int
) -> Array:
    return _strided(x, shape, tuple(s // itemsize for s in strides), offset // itemsize)


def _view_grad(y: Tensor, g: Tensor) -> Tensor:
    x, size = y.srcs[0], y.dtype.itemsize
    seen_twice, reach = False, size
    for stride, n in sorted(zip(y.strides, y.shape, strict=True)):
        seen_twice |= n > 1 and stride < reach
        reach += (n - 1) * stride
    if not x.is_contiguous or (seen_twice and g.size):
        raise GradientError(
            f"view: no gradient: {x.label} is not contiguous or the view sees elements twice. "
            "Take slices (x[1:3]) or a contiguous copy."
        )
    return view_back(g, x.shape, tuple(s // size for s in y.strides), y.params["offset"] // size)


def last_byte(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    """Bytes from the first element to the end of the furthest."""
    if 0 in shape:
        return 0
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + itemsize


@op(
    vjp=(_view_grad,),
    reference=_view_reference,
    samples=_view_sample,
    error_samples=lambda: [
        ErrorSample(lambda: view(tensor([1.0, 2.0]), (2,), (4,), 4), ShapeError, "beyond"),
        ErrorSample(lambda: view(tensor([1.0, 2.0]), (2,), (4, 4), 0), ShapeError, "one stride"),
    ],
    family="view",
)
def view(
    x: Tensor, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0
) -> Result:
    """Look at part of `x`: `shape` elements, `strides` bytes apart, `offset` bytes in.

    Without strides the view is contiguous.

    Raises:
        ShapeError: the view reaches beyond the memory of `x`, or offset and strides are not
        multiples of the element size.
    Gradient: with respect to a contiguous `x`, unless the view sees an element twice; take
    slices (`x[1:3]`) of anything else.
    Source: ggml_view_1d to _4d.

    >>> view(tensor([1.0, 2.0, 3.0]), (2,), offset=4).numpy()
    array([2., 3.], dtype=float32)
    """
    shape = check_shape("view", shape)
    need_whole_rows("view", x, whole=False)
    size = x.dtype.itemsize
    strides = contiguous_strides(shape, size) if strides is None else tuple(strides)
    if len(strides) != len(shape) or any(s < 0 or s % size for s in (*strides, offset)):
        raise ShapeError(
            f"view: got shape {shape}, strides {strides}, offset {offset}; want one stride per "
            f"axis, none negative, all multiples of {size} bytes"
        )
    end, room = offset + last_byte(shape, strides, size), last_byte(x.shape, x.strides, size)
    if end > room:
        raise ShapeError(f"view: reaches byte {end}, beyond the {room} bytes of {x.label}")
    params = {"shape": shape, "strides": strides, "offset": offset, "itemsize": size}
    return Result((x,), shape, x.dtype, params, strides, offset)


_ZERO = np.zeros(1, np.float64)  # what cleared memory is copied from


def _clear_steps(dst: View) -> list[Step]:
    return copy_steps(dst, View(_ZERO.ctypes.data, (), (), f64.code, f64.itemsize))


def part_of(whole: View, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> View:
    """A region of memory, `offset` bytes in."""
    return View(whole.address + offset, shape, strides, whole.code, whole.itemsize)


def _lower_view_back(site: Site) -> list[Step]:
    dst, grad = as_view(site.dst), as_view(site.srcs[0])
    strides = tuple(s * dst.itemsize for s in site.params["steps"])
    part = part_of(dst, grad.shape, strides, site.params["start"] * dst.itemsize)
    return _clear_steps(dst) + copy_steps(part, grad)


def _view_back_reference(
    g: Array, shape: tuple[int, ...], steps: tuple[int, ...], start: int
) -> Array:
    out = np.zeros(int(np.prod(shape)))
    byte_steps = tuple(s * out.itemsize for s in steps)
    if g.size:
        np.lib.stride_tricks.as_strided(out[start:], g.shape, byte_steps)[...] = g
    return out.reshape(shape)


def _view_back_sample(d: Draw) -> Call:
    rows, columns = d.integer(2, 6), d.integer(2, 6)
    top, left = d.integer(0, rows - 1), d.integer(0, columns - 1)
    shape = (d.integer(0, rows - top), d.integer(1, columns - left))
    return call(d.floats(shape), (rows, columns), (columns, 1), top * columns + left)


def _view_back_grad(y: Tensor, g: Tensor) -> Tensor:
    size = g.dtype.itemsize
    strides = tuple(s * size for s in y.params["steps"])
    return view(contiguous(g), y.srcs[0].shape, strides, y.params["start"] * size)


@op(
    lower=_lower_view_back,
    vjp=(_view_back_grad,),
    reference=_view_back_reference,
    samples=_view_back_sample,
    error_samples=lambda: [
        ErrorSample(lambda: view_back(tensor([1.0, 2.0]), (2,), (1,), 1), ShapeError, "beyond")
    ],
    family="view",
)
def view_back(g: Tensor, shape: tuple[int, ...], steps: tuple[int, ...], start: int = 0) -> Result:
    """Zeros of `shape` with `g` written where a view or slice looked: their gradient.

    Args:
        g: float. steps: elements between neighbours of each axis of `g` in the result.
        start: element of the (contiguous) result where g[0, …] goes.
    Gradient: with respect to `g`.
    Source: the gradient of ggml_view, which ggml writes as ggml_acc into zeros.

    >>> view_back(tensor([1.0, 2.0]), (4,), (2,), 1).numpy()
    array([0., 1., 0., 2.], dtype=float32)
    """
    need_float("view_back", g)
    shape, size = check_shape("view_back", shape), g.dtype.itemsize
    end = start * size + last_byte(g.shape, tuple(s * size for s in steps), size)
    if len(steps) != g.ndim or end > int(np.prod(shape)) * size:
        raise ShapeError(f"view_back: {g.shape} at {start} by {steps} reaches beyond {shape}")
    return Result((g,), shape, g.dtype, {"shape": shape, "steps": tuple(steps), "start": start})
