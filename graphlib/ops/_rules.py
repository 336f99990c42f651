"""Checks and shapes that rules share, and operands as kernels take them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from yupana.graphlib.dtypes import Dtype, f32, f64, i32
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels.blocks import View, padded
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.rowwise import Rows
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import REGISTRY, Call, Draw, Lower, Operand, Result, Site, call
from yupana.graphlib.tensor import Tensor


def need_float(name: str, *tensors: Tensor) -> None:
    """Raise unless every tensor is of a float type."""
    for tensor in tensors:
        if not tensor.dtype.is_float:
            raise DtypeError(
                f"{name}: got {tensor.dtype} for {tensor.label}, want a float type. "
                "Convert it with cast(x, 'f32')."
            )


def need_plain(name: str, *tensors: Tensor) -> None:
    """Raise if a tensor is quantised: any other dtype will do."""
    for tensor in tensors:
        if tensor.dtype.is_quantized:
            raise DtypeError(
                f"{name}: got {tensor.dtype} for {tensor.label}, want a type that is not "
                "quantised. Convert it with cast(x, 'f32')."
            )


def need_real(name: str, *tensors: Tensor) -> None:
    """Raise unless every tensor is of a float or quantised type."""
    for tensor in tensors:
        if not tensor.dtype.is_quantized:
            need_float(name, tensor)


def need_index(name: str, index: Tensor) -> None:
    """Raise unless `index` is of whole numbers."""
    if index.dtype is not i32:
        raise DtypeError(
            f"{name}: got an index of {index.dtype}, want i32. Convert it with cast(index, 'i32')."
        )


def need_one_precision(name: str, a: Tensor, b: Tensor) -> None:
    """Raise unless both are f64, or neither is."""
    if (a.dtype is f64) != (b.dtype is f64):
        raise DtypeError(f"{name}: got {a.dtype} and {b.dtype}, want f64 for both or neither")


def need_same_shape(name: str, a: Tensor, b: Tensor) -> None:
    """Raise unless both have the same shape."""
    if a.shape != b.shape:
        raise ShapeError(f"{name}: shapes differ: got {a.shape} and {b.shape}, want the same")


def need_axes(name: str, x: Tensor, least: int) -> None:
    """Raise unless `x` has at least `least` axes."""
    if x.ndim < least:
        raise ShapeError(f"{name}: got shape {x.shape}, want at least {least} axes")


def need_contiguous(name: str, *tensors: Tensor) -> None:
    """Raise unless the elements of every tensor follow each other without gaps."""
    for tensor in tensors:
        if not tensor.is_contiguous:
            raise ShapeError(
                f"{name}: {tensor.label} is not contiguous: strides {tensor.strides}. Pass cont(x)."
            )


def need_whole_rows(name: str, x: Tensor, whole: bool) -> None:
    """Raise if `x` is quantised and a view would not leave its rows `whole`."""
    if x.dtype.is_quantized and not whole:
        raise ShapeError(
            f"{name}: cannot look into rows of {x.dtype}: got {x.label}, want a view that cuts or "
            "moves the axes before the last. Products take it as it is, mul_mat(w, x); for "
            "anything else convert it with cast(x, 'f32')."
        )


def broadcast_shape(name: str, *tensors: Tensor) -> tuple[int, ...]:
    """The shape NumPy broadcasts to."""
    try:
        return np.broadcast_shapes(*(t.shape for t in tensors))
    except ValueError:
        shapes = " and ".join(str(t.shape) for t in tensors)
        raise ShapeError(
            f"{name}: shapes do not broadcast: got {shapes}, want sizes that are equal or 1, "
            "aligned at the last axis"
        ) from None


def float_dtype(name: str, *tensors: Tensor) -> Dtype:
    """What comes out of arithmetic: the widest, f32 where two half types differ."""
    need_float(name, *tensors)
    dtypes = {t.dtype.name: t.dtype for t in tensors}
    if len(dtypes) == 1:
        return tensors[0].dtype
    return f64 if "f64" in dtypes else f32


def wide_dtype(*tensors: Tensor | Operand) -> Dtype:
    """What comes out of long sums: f64 if an operand is, else f32."""
    return f64 if any(tensor.dtype is f64 for tensor in tensors) else f32


def view(operand: Operand) -> View:
    """An operand as the kernel families take it."""
    dtype = operand.dtype
    return View(operand.address, operand.shape, operand.strides, dtype.code, dtype.itemsize)


def four_axes(operand: Operand) -> View:
    """An operand with the leading axes that it lacks, of size 1."""
    v = view(operand)
    return View(v.address, padded(v.shape, 4, 1), padded(v.strides, 4), v.code, v.itemsize)


def lower_map(mapping: Map, params: Sequence[str] = ()) -> Lower:
    """Lower to an element-wise kernel; `params` names the node's float parameters it takes."""

    def lower(site: Site) -> list[Step]:
        values = [float(site.params[name]) for name in params]
        return mapping.steps(view(site.dst), [view(src) for src in site.srcs], values)

    return lower


def lower_rows(rows: Rows, params: Sequence[str] = ()) -> Lower:
    """Lower to a row-wise kernel; `params` names the node's float parameters it takes."""

    def lower(site: Site) -> list[Step]:
        values = [float(site.params[name]) for name in params]
        return rows.steps(view(site.dst), [view(src) for src in site.srcs], values)

    return lower


def like(x: Tensor, **params: Any) -> Result:
    """A result of the source's shape and dtype."""
    return Result((x,), x.shape, x.dtype, params)


def float_like(name: str, x: Tensor, **params: Any) -> Result:
    """The same for a source that must be of a float type."""
    need_float(name, x)
    return like(x, **params)


def alike(name: str, x: Tensor, g: Tensor, **params: Any) -> Result:
    """A result of two float sources of one shape, as most gradients are."""
    need_same_shape(name, x, g)
    return Result((x, g), x.shape, float_dtype(name, x, g), params)


def unbroadcast(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a source that was broadcast: summed over the axes it was repeated along."""
    return grad if grad.shape == x.shape else REGISTRY["repeat_back"](grad, x.shape)


def unary_samples(low: float = -3.0, high: float = 3.0) -> Callable[[Draw], Call]:
    """One tensor of any shape with values in [low, high]."""
    return lambda d: call(d.floats(d.shape(min_axes=0), low, high))
