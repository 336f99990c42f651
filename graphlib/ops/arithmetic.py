"""Sums, products and their kin, element by element, with NumPy's broadcasting."""

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import QUANTIZED, Dtype, dtype_of, f32
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import quant_copy
from yupana.graphlib.kernels.blocks import View, contiguous_strides
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import REGISTRY, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import (
    broadcast_shape,
    float_dtype,
    float_like,
    lower_map,
    need_float,
    unary_samples,
    unbroadcast,
    view,
)
from yupana.graphlib.ops._samples import refuses_integers
from yupana.graphlib.ops.copies import cast
from yupana.graphlib.tensor import Tensor


def _broadcast_result(name: str, a: Tensor, b: Tensor) -> Result:
    return Result((a, b), broadcast_shape(name, a, b), float_dtype(name, a, b))


def _two(d: Draw) -> Call:
    shape = d.shape(min_axes=0)
    pair = [d.floats(shape), d.floats(d.broadcastable(shape))]
    return call(*(pair if d.choice([True, False]) else reversed(pair)))


def _numerator_and_divisor(d: Draw) -> Call:
    shape = d.shape(min_axes=0)
    return call(d.floats(shape), d.floats(d.broadcastable(shape), 0.5, 3.0))


def _errors(name: str) -> list[ErrorSample]:
    def run(a: ArrayLike, b: ArrayLike) -> Tensor:
        return REGISTRY[name](tensor(a), tensor(b))

    return [
        ErrorSample(lambda: run([1.0, 2.0], [1.0, 2.0, 3.0]), ShapeError, "(2,) and (3,)"),
        ErrorSample(lambda: run([1, 2], [1, 2]), DtypeError, "i32"),
    ]


_add = Map(lambda a, b, p0, p1, p2, p3: a + b, 2)


def _lower_add(site: Site) -> list[Step]:
    dst, (a, b) = view(site.dst), map(view, site.srcs)
    if not site.dst.dtype.is_quantized:
        return _add.steps(dst, [a, b])
    strides = contiguous_strides(dst.shape, f32.itemsize)
    sums = View(site.workspace(f32.itemsize * site.dst.size), dst.shape, strides, f32.code, 4)
    expanded, stored = quant_copy.copy_steps(sums, a), quant_copy.copy_steps(dst, sums)
    return [*expanded, *_add.steps(sums, [sums, b]), *stored]


def _add_sample(d: Draw) -> Call:
    if d.integer(0, 3) < 3:
        return _two(d)
    name = d.choice(list(QUANTIZED))
    width = d.integer(0, 2) * QUANTIZED[name].block
    shape = (*d.shape(min_axes=0, max_axes=3, max_side=3), width)
    return call(d.quantized(shape, name), d.floats(d.broadcastable(shape), -1.0, 1.0))


def _add_errors() -> list[ErrorSample]:
    w = tensor(np.ones((2, 32)), "Q8_0")
    return [
        *_errors("add"),
        ErrorSample(lambda: add(w, tensor(np.ones((2, 2, 32)))), ShapeError, "the shape of a"),
        ErrorSample(lambda: add(w, w), DtypeError, "Q8_0"),
        ErrorSample(lambda: add(tensor(np.ones((2, 32))), w), DtypeError, "Q8_0"),
    ]


@op(
    lower=_lower_add,
    vjp=(
        lambda y, g: unbroadcast(g, y.srcs[0]),
        lambda y, g: unbroadcast(g, y.srcs[1]),
    ),
    reference=np.add,
    samples=_add_sample,
    error_samples=_add_errors,
    inplace=(0, 1),
    family="arithmetic",
)
def add(a: Tensor, b: Tensor) -> Result:
    """Add two tensors: y = a + b.

    Args:
        a, b: float tensors whose shapes broadcast; `a` may be quantised, if b broadcasts to it.
    Returns:
        The broadcast shape; the wider dtype (f32 for f16 with bf16). A quantised `a` gives sums of
        its type, made in f32; `add_cast` has them in any other.
    Raises:
        ShapeError: the shapes do not broadcast. DtypeError: not these types.
    Gradient: with respect to both, summed over repeated axes.
    Source: ggml_add.

    >>> add(tensor([1.0, 2.0]), tensor(3.0)).numpy()
    array([4., 5.], dtype=float32)
    """
    if not a.dtype.is_quantized:
        return _broadcast_result("add", a, b)
    need_float("add", b)
    if broadcast_shape("add", a, b) != a.shape:
        raise ShapeError(f"add: got {a.shape} in blocks and {b.shape}, want the shape of a.")
    return Result((a, b), a.shape, a.dtype)


@op(
    lower=lower_map(Map(lambda a, b, p0, p1, p2, p3: a - b, 2)),
    vjp=(
        lambda y, g: unbroadcast(g, y.srcs[0]),
        lambda y, g: neg(unbroadcast(g, y.srcs[1])),
    ),
    reference=np.subtract,
    samples=_two,
    error_samples=lambda: _errors("sub"),
    inplace=(0, 1),
    family="arithmetic",
)
def sub(a: Tensor, b: Tensor) -> Result:
    """Subtract: y = a - b, broadcast as `add`.

    Gradient: with respect to both. Source: ggml_sub.

    >>> sub(tensor([1.0, 2.0]), tensor([3.0, 5.0])).numpy()
    array([-2., -3.], dtype=float32)
    """
    return _broadcast_result("sub", a, b)


@op(
    lower=lower_map(Map(lambda a, b, p0, p1, p2, p3: a * b, 2)),
    vjp=(
        lambda y, g: unbroadcast(mul(g, y.srcs[1]), y.srcs[0]),
        lambda y, g: unbroadcast(mul(g, y.srcs[0]), y.srcs[1]),
    ),
    reference=np.multiply,
    samples=_two,
    error_samples=lambda: _errors("mul"),
    inplace=(0, 1),
    family="arithmetic",
)
def mul(a: Tensor, b: Tensor) -> Result:
    """Multiply element by element: y = a * b, broadcast as `add`.

    Gradient: with respect to both. Source: ggml_mul.

    >>> mul(tensor([1.0, 2.0]), tensor([3.0, 5.0])).numpy()
    array([ 3., 10.], dtype=float32)
    """
    return _broadcast_result("mul", a, b)


@op(
    lower=lower_map(Map(lambda a, b, p0, p1, p2, p3: a / b, 2, ns=0.5)),
    vjp=(
        lambda y, g: unbroadcast(div(g, y.srcs[1]), y.srcs[0]),
        lambda y, g: neg(unbroadcast(div(mul(g, y), y.srcs[1]), y.srcs[1])),
    ),
    reference=np.divide,
    samples=_numerator_and_divisor,
    error_samples=lambda: _errors("div"),
    inplace=(0, 1),
    family="arithmetic",
)
def div(a: Tensor, b: Tensor) -> Result:
    """Divide element by element: y = a / b, broadcast as `add`; x/0 is infinite, 0/0 NaN.

    Gradient: with respect to both. Source: ggml_div.

    >>> div(tensor([1.0, 3.0]), tensor(2.0)).numpy()
    array([0.5, 1.5], dtype=float32)
    """
    return _broadcast_result("div", a, b)


def add_cast(a: Tensor, b: Tensor, dtype: str | Dtype = "f32") -> Tensor:
    """A sum in another dtype, y = cast(a + b), where `a` may be quantised.

    Args:
        a: float or quantised. b: float; the shapes broadcast.
        dtype: of the result. That of `a` gives what `add` does to a quantised tensor.
    Gradient: with respect to both. Source: ggml_add_cast.

    >>> w = cast(tensor([[1.0] * 32]), "Q4_0")
    >>> add_cast(w, tensor([0.5])).numpy()[0, :2]
    array([1.5, 1.5], dtype=float32)
    """
    total = add(cast(a, "f32") if a.dtype.is_quantized else a, b)
    return total if total.dtype is dtype_of(dtype) else cast(total, dtype)


@op(
    lower=lower_map(Map(lambda x, p0, p1, p2, p3: -x, 1)),
    vjp=(lambda y, g: neg(g),),
    reference=np.negative,
    samples=unary_samples(),
    error_samples=refuses_integers("neg"),
    inplace=(0,),
    family="arithmetic",
)
def neg(x: Tensor) -> Result:
    """Negate: y = -x.

    Gradient: with respect to `x`. Source: ggml_neg.

    >>> neg(tensor([1.0, -2.0])).numpy()
    array([-1.,  2.], dtype=float32)
    """
    return float_like("neg", x)


@op(
    lower=lower_map(Map(lambda x, s, p1, p2, p3: x * s, 1), ("s",)),
    vjp=(lambda y, g: scale(g, y.params["s"]),),
    reference=lambda x, s: x * s,
    samples=lambda d: call(d.floats(d.shape(min_axes=0)), d.choice([0.0, 1.0, -0.5, 3.0])),
    error_samples=refuses_integers("scale", 2.0),
    inplace=(0,),
    family="arithmetic",
)
def scale(x: Tensor, s: float) -> Result:
    """Multiply by a number: y = s · x.

    Args:
        x: float tensor of any shape.
        s: the factor, fixed when the graph is recorded; for one that changes use `mul`.
    Gradient: with respect to `x`. Source: ggml_scale (since it takes a number).

    >>> scale(tensor([1.0, 2.0]), 0.5).numpy()
    array([0.5, 1. ], dtype=float32)
    """
    return float_like("scale", x, s=float(s))
