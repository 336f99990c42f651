"""Tensors put together, padded, rolled, and matrices of one triangle or one diagonal."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import Dtype
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.blocks import contiguous_strides
from yupana.graphlib.kernels.rowwise import Rows
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import float_dtype, float_like, need_axes, need_float, need_plain
from yupana.graphlib.ops._rules import view as as_view
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.ops.reduction import copy_steps
from yupana.graphlib.ops.slices import index
from yupana.graphlib.ops.views import part_of, view_back
from yupana.graphlib.tensor import MAX_AXES, Tensor

_MOST_PARTS = 64


def axis_of(name: str, x: Tensor, axis: int) -> int:
    """`axis` counted from the first; negative ones count from the last."""
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name}: got axis {axis} for shape {x.shape}, want one of its axes")
    return int(axis) % x.ndim


def along(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """A view of the part [start, stop) of one axis; `x` itself if that is all of it."""
    if start == 0 and stop == x.shape[axis]:
        return x
    return index(x, (np.s_[:],) * axis + (np.s_[start:stop],))


def _lower_concat(site: Site) -> list[Step]:
    dst, axis = as_view(site.dst), site.params["axis"]
    steps: list[Step] = []
    offset = 0
    for operand in site.srcs:
        src = as_view(operand)
        steps += copy_steps(part_of(dst, src.shape, dst.strides, offset), src)
        offset += src.shape[axis] * dst.strides[axis]
    return steps


def _concat_grad(k: int, y: Tensor, g: Tensor) -> Tensor:
    axis = y.params["axis"]
    start = sum(src.shape[axis] for src in y.srcs[:k])
    return along(g, axis, start, start + y.srcs[k].shape[axis])


def _concat_sample(d: Draw) -> Call:
    shape = d.shape()
    axis = d.integer(0, len(shape) - 1)
    sides = [d.choice([shape[axis], 1, 0, 3]) for _ in range(d.integer(1, 4))]
    parts = [d.floats((*shape[:axis], n, *shape[axis + 1 :])) for n in sides]
    return call(*parts, axis=axis - d.choice([0, len(shape)]))


def _concat_errors() -> list[ErrorSample]:
    flat, matrix = tensor([1.0, 2.0]), tensor([[1.0, 2.0]])
    quantised = tensor(np.ones(32), "Q8_0")
    return [
        ErrorSample(lambda: concat(flat, matrix, axis=0), ShapeError, "(2,) and (1, 2)"),
        ErrorSample(lambda: concat(matrix, tensor([[1.0]]), axis=0), ShapeError, "(1, 1)"),
        ErrorSample(lambda: concat(flat, axis=1), ShapeError, "axis 1"),
        ErrorSample(lambda: concat(flat, tensor([1, 2])), DtypeError, "i32"),
        ErrorSample(lambda: concat(quantised, quantised, axis=0), DtypeError, "Q8_0"),
        ErrorSample(lambda: concat(*[flat] * 65), SettingError, "got 65"),
        ErrorSample(lambda: concat(), SettingError, "got 0"),  # noqa: PLW0108
    ]


def _common_dtype(parts: Sequence[Tensor]) -> Dtype:
    if all(part.dtype is parts[0].dtype for part in parts):
        return parts[0].dtype
    return float_dtype("concat", *parts)


@op(
    lower=_lower_concat,
    vjp=tuple(partial(_concat_grad, k) for k in range(_MOST_PARTS)),
    reference=lambda *parts, axis: np.concatenate(parts, axis),
    samples=_concat_sample,
    error_samples=_concat_errors,
    cost=0.0,
    family="copy",
)
def concat(*parts: Tensor, axis: int = -1) -> Result:
    """Put tensors behind each other along an axis.

    Args:
        parts: 1 to 64 tensors whose other sizes agree.
        axis: the axis along which they are joined; negative ones count from the last.
    Returns:
        Their dtype if they have the same (i32 stays), else the wider float type.
    Raises:
        ShapeError: other sizes differ. DtypeError: i32 with floats. SettingError: too many parts.
    Gradient: with respect to each part (ggml has none). Source: ggml_concat.

    >>> concat(tensor([[1.0], [2.0]]), tensor([[3.0, 4.0], [5.0, 6.0]])).numpy()
    array([[1., 3., 4.],
           [2., 5., 6.]], dtype=float32)
    """
    if not 0 < len(parts) <= _MOST_PARTS:
        raise SettingError(f"concat: got {len(parts)} tensors, want 1 to {_MOST_PARTS}")
    need_plain("concat", *parts)
    first = parts[0]
    at = axis_of("concat", first, axis)
    for part in parts:
        if part.ndim != first.ndim or any(
            n != m for k, (n, m) in enumerate(zip(part.shape, first.shape, strict=True)) if k != at
        ):
            raise ShapeError(
                f"concat: shapes do not fit: got {first.shape} and {part.shape}, want the same "
                f"sizes but along axis {at}"
            )
    total = sum(part.shape[at] for part in parts)
    shape = (*first.shape[:at], total, *first.shape[at + 1 :])
    return Result(parts, shape, _common_dtype(parts), {"axis": at})


def pad(x: Tensor, widths: Sequence[tuple[int, int]], circular: bool = False) -> Tensor:
    """Add zeros, or what lies at the opposite end, before and behind each axis.

    Args:
        x: float.
        widths: for each axis how many elements come before and how many behind.
        circular: repeat `x` instead of zeros; widths are then at most the size of the axis.
    Raises:
        ShapeError: not one pair for each axis. SettingError: a width is negative or too large.
    Gradient: with respect to `x` (ggml has none).
    Source: ggml_pad, ggml_pad_ext, ggml_pad_ext_circular (which list axes from the last).

    >>> pad(tensor([1.0, 2.0, 3.0]), [(1, 2)]).numpy()
    array([0., 1., 2., 3., 0., 0.], dtype=float32)
    >>> pad(tensor([1.0, 2.0, 3.0]), [(1, 2)], circular=True).numpy()
    array([3., 1., 2., 3., 1., 2.], dtype=float32)
    """
    need_float("pad", x)
    if len(widths) != x.ndim or any(len(pair) != 2 for pair in widths):
        raise ShapeError(f"pad: got widths {widths} for {x.shape}, want (before, after) per axis")
    for n, pair in zip(x.shape, widths, strict=True):
        if min(pair) < 0 or (circular and max(pair) > n):
            most = f" and at most {n}" if circular else ""
            raise SettingError(f"pad: got {pair} for an axis of {n}, want widths from 0{most}")
    if circular:
        for axis, (before, after) in enumerate(widths):
            n = x.shape[axis]
            ends = along(x, axis, n - before, n), x, along(x, axis, 0, after)
            x = concat(*ends, axis=axis) if before or after else x
        return x
    shape = tuple(a + n + b for n, (a, b) in zip(x.shape, widths, strict=True))
    steps = contiguous_strides(shape, 1)
    start = sum(step * before for step, (before, _) in zip(steps, widths, strict=True))
    return view_back(x, shape, steps, start if x.size else 0)


def roll(x: Tensor, shift: int | Sequence[int], axis: int | Sequence[int] = -1) -> Tensor:
    """Move elements along axes; what leaves at one end comes in at the other.

    Args:
        shift: how far, towards higher indices; may be negative or beyond the size.
        axis: the axis, or one for each shift.
    Raises:
        ShapeError: an axis that `x` does not have, or not one for each shift.
    Gradient: with respect to `x`. Source: ggml_roll (which lists shifts from the last axis).

    >>> roll(tensor([1.0, 2.0, 3.0, 4.0]), 1).numpy()
    array([4., 1., 2., 3.], dtype=float32)
    """
    shifts = [shift] if isinstance(shift, int) else list(shift)
    axes = [axis] if isinstance(axis, int) else list(axis)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: got shifts {shifts} and axes {axes}, want one for each")
    for distance, k in zip(shifts, axes, strict=True):
        at = axis_of("roll", x, k)
        n = x.shape[at]
        first = distance % n if n else 0
        if first:
            x = concat(along(x, at, n - first, n), along(x, at, 0, n - first), axis=at)
    return x


def arange(start: float, stop: float | None = None, step: float = 1) -> Tensor:
    """A leaf of evenly spaced numbers, as NumPy's: i32 where all are ints, else f32.

    Source: ggml_arange (always f32: pass floats for that).

    >>> arange(4).numpy(), arange(0.0, 1.0, 0.25).numpy()
    (array([0, 1, 2, 3], dtype=int32), array([0.  , 0.25, 0.5 , 0.75], dtype=float32))
    """
    if step == 0:
        raise SettingError("arange: got step 0, want a number that is not 0")
    return tensor(np.arange(start, stop, step) if stop is not None else np.arange(0, start, step))


def diag(x: Tensor) -> Tensor:
    """Matrices of zeros with the rows of `x` on their diagonals: (…, N) → (…, N, N).

    Raises:
        ShapeError: `x` has no axes, or four.
    Gradient: with respect to `x` (ggml has none). Source: ggml_diag.

    >>> diag(tensor([1.0, 2.0])).numpy()
    array([[1., 0.],
           [0., 2.]], dtype=float32)
    """
    need_axes("diag", x, 1)
    if x.ndim == MAX_AXES:
        raise ShapeError(f"diag: got shape {x.shape}, want at most {MAX_AXES - 1} axes")
    shape = (*x.shape, x.shape[-1])
    steps = contiguous_strides(shape, 1)
    return view_back(contiguous(x), shape, (*steps[:-2], steps[-2] + 1))


# What is kept of row i: columns from i + low to i + high.
_BANDS = {
    "lower_diag": (-np.inf, 0.0),
    "lower": (-np.inf, -1.0),
    "upper_diag": (0.0, np.inf),
    "upper": (1.0, np.inf),
}


def _band(y, x, i, p):
    zero = y.dtype.type(0)
    for j in range(y.size):
        y[j] = x[j] if p[0] <= j - i <= p[1] else zero


_band_rows = Rows(_band, 1, ns=0.2)


def _tri_reference(x: Array, kind: str) -> Array:
    low, high = _BANDS[kind]
    rows, columns = np.indices(x.shape[-2:])
    return np.asarray(np.where((columns - rows >= low) & (columns - rows <= high), x, 0.0))


def _tri_errors() -> list[ErrorSample]:
    return [
        ErrorSample(lambda: tri(tensor([[1]])), DtypeError, "i32"),
        ErrorSample(lambda: tri(tensor([1.0])), ShapeError, "2 axes"),
        ErrorSample(lambda: tri(tensor([[1.0]]), "left"), SettingError, "'left'"),
    ]


@op(
    lower=lambda site: _band_rows.steps(
        as_view(site.dst), [as_view(site.srcs[0])], _BANDS[site.params["kind"]]
    ),
    vjp=(lambda y, g: tri(g, y.params["kind"]),),
    reference=_tri_reference,
    samples=lambda d: call(d.floats(d.shape(min_axes=2)), d.choice(list(_BANDS))),
    error_samples=_tri_errors,
    inplace=(0,),
    cost=0.0,
    family="copy",
)
def tri(x: Tensor, kind: str = "lower_diag") -> Result:
    """Keep one triangle of each matrix, zeros elsewhere.

    Args:
        x: (…, N, M) float.
        kind: "lower" or "upper", without the diagonal; with it "lower_diag" or "upper_diag".
    Raises:
        ShapeError: fewer than two axes. SettingError: another `kind`.
    Gradient: with respect to `x`. Source: ggml_tri.

    >>> tri(tensor([[1.0, 2.0], [3.0, 4.0]]), "upper").numpy()
    array([[0., 2.],
           [0., 0.]], dtype=float32)
    """
    need_axes("tri", x, 2)
    if kind not in _BANDS:
        raise SettingError(f"tri: got kind {kind!r}, want one of {', '.join(_BANDS)}")
    return float_like("tri", x, kind=kind)
