"""Copies of a whole tensor: contiguous, or of another dtype."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import QUANTIZED, Dtype, dtype_of, f64
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import quant_copy
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import view
from yupana.graphlib.ops.reduction import copy_steps
from yupana.graphlib.tensor import Tensor

_ANY = ("f32", "f32", "f16", "bf16", "i32", "i16", "i8")  # dtypes of samples


def lower_copy(site: Site) -> list[Step]:
    """Copy the first source to the result, converting."""
    dst, src = view(site.dst), view(site.srcs[0])
    if site.dst.dtype.is_quantized or site.srcs[0].dtype.is_quantized:
        return quant_copy.copy_steps(dst, src)
    return copy_steps(dst, src)


@op(
    lower=lower_copy,
    vjp=(lambda y, g: g,),
    reference=lambda x: x,
    samples=lambda d: call(d.floats(d.shape(min_axes=0), dtypes=_ANY)),
    error_samples=list,
    cost=0.0,
    family="copy",
)
def cont(x: Tensor) -> Result:
    """A contiguous copy.

    Gradient: with respect to `x`. Source: ggml_cont.

    >>> cont(tensor([[1.0, 2.0]]).T).is_contiguous
    True
    """
    return Result((x,), x.shape, x.dtype)


def _cast_sample(d: Draw) -> Call:
    floats, whole = ("f32", "f64", "f16", "bf16"), ("i8", "i16", "i32")
    kind = d.integer(0, 4)
    if kind < 3:
        return call(d.floats(d.shape(min_axes=0), dtypes=floats), d.choice(floats))
    if kind == 3:  # to and from whole numbers, many of them beyond the range of i8
        every = (*whole, *floats)
        x = d.floats(d.shape(min_axes=0), -300.0, 300.0, dtypes=every)
        return call(x, d.choice(whole if x.dtype.is_float else every))
    name = d.choice(list(QUANTIZED))
    shape = (*d.shape(min_axes=0, max_axes=3, max_side=3), d.integer(0, 2) * QUANTIZED[name].block)
    return call(d.floats(shape, -4.0, 4.0, dtypes=floats), name)  # finite ones


def _cast_errors() -> list[ErrorSample]:
    return [
        ErrorSample(lambda: cast(tensor([1.0]), "q9"), DtypeError, "one of"),
        ErrorSample(lambda: cast(tensor([1.0]), "Q4_K"), ShapeError, "multiple of 256"),
    ]


@op(
    lower=lower_copy,
    vjp=(lambda y, g: cast(g, y.srcs[0].dtype) if y.srcs[0].dtype is f64 else g,),
    reference=lambda x, dtype: x if dtype.is_real else np.trunc(x),
    samples=_cast_sample,
    error_samples=_cast_errors,
    cost=0.0,
    family="copy",
)
def cast(x: Tensor, dtype: str | Dtype) -> Result:
    """A contiguous copy of another dtype, rounded to nearest even.

    To i32, i16 and i8 fractions are cut off; beyond the range the nearest number is stored, and 0
    for NaN.
    To a quantised type each row is stored as ggml would, after rounding to float32; what a block
    becomes that holds infinities or NaN is not defined.

    Raises:
        ShapeError: rows that are not whole blocks of a quantised type.
    Gradient: with respect to `x`, as if nothing were rounded. Source: ggml_cast.

    >>> cast(tensor([1.0, 2.5]), "i32").numpy()
    array([1, 2], dtype=int32)
    """
    target = dtype_of(dtype)
    target.check_shape("cast", x.shape)
    return Result((x,), x.shape, target, {"dtype": target})


def contiguous(x: Tensor) -> Tensor:
    """`x` itself where its elements follow each other without gaps, else a copy that does."""
    return x if x.is_contiguous else cont(x)
