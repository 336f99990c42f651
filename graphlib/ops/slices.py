"""Slices: a part of every axis, as NumPy's brackets take it."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import PlaceError, ShapeError
from yupana.graphlib.kernels.blocks import contiguous_strides
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, call, op
from yupana.graphlib.ops._rules import need_whole_rows
from yupana.graphlib.ops.views import view_back
from yupana.graphlib.tensor import Tensor


def _slice_sample(d: Draw) -> Call:
    shape = d.shape()
    parts, drop = [], []
    for axis, n in enumerate(shape):
        start = d.integer(0, n)
        if start < n and d.choice([False, False, True]):
            parts.append((start, start + 1, 1))
            drop.append(axis)
        else:
            parts.append((start, d.integer(start, n), d.choice([1, 1, 2])))
    return call(d.floats(shape), tuple(parts), tuple(drop))


def _slice_reference(
    x: Array, parts: tuple[tuple[int, int, int], ...], drop: tuple[int, ...]
) -> Array:
    return x[tuple(np.s_[a:b:c] for a, b, c in parts)].squeeze(axis=drop)


def _slice_grad(y: Tensor, g: Tensor) -> Tensor:
    x = y.srcs[0]
    elements = contiguous_strides(x.shape, 1)
    parts, drop = y.params["parts"], y.params["drop"]
    steps = [e * part[2] for e, part in zip(elements, parts, strict=True)]
    kept = tuple(step for axis, step in enumerate(steps) if axis not in drop)
    start = sum(e * part[0] for e, part in zip(elements, parts, strict=True))
    return view_back(g, x.shape, kept, start if g.size else 0)


@op(
    vjp=(_slice_grad,),
    reference=_slice_reference,
    samples=_slice_sample,
    error_samples=lambda: [
        ErrorSample(lambda: slice(tensor([1.0]), ((0, 2, 1),)), ShapeError, "within"),
        ErrorSample(lambda: slice(tensor([1.0]), ((0, 0, 1),), (0,)), ShapeError, "drop"),
    ],
    family="view",
)
def slice(x: Tensor, parts: tuple[tuple[int, int, int], ...], drop: tuple[int, ...] = ()) -> Result:
    """Part of every axis: what `x[1:3, ::2]` records.

    Args:
        parts: (start, stop, step) for each axis, 0 <= start <= stop <= size, step at least 1.
        drop: axes left out of the result, each of size 1 in it.
    Gradient: with respect to `x`. Source: ggml_view_4d with offsets worked out.

    >>> slice(tensor([1.0, 2.0, 3.0]), ((1, 3, 1),)).numpy()
    array([2., 3.], dtype=float32)
    """
    if len(parts) != x.ndim or any(
        not (0 <= a <= b <= n and step >= 1) for (a, b, step), n in zip(parts, x.shape, strict=True)
    ):
        raise ShapeError(f"slice: got {parts} for shape {x.shape}, want parts within each axis")
    whole = bool(parts) and parts[-1] == (0, x.shape[-1], 1) and x.ndim - 1 not in drop
    need_whole_rows("slice", x, whole)
    shape = [-(-(b - a) // step) for a, b, step in parts]
    if any(not 0 <= axis < x.ndim or shape[axis] != 1 for axis in drop):
        raise ShapeError(f"slice: cannot drop axes {drop} of {tuple(shape)}, want axes of size 1")
    strides = [s * step for s, (_, _, step) in zip(x.strides, parts, strict=True)]
    offset = sum(s * a for s, (a, _, _) in zip(x.strides, parts, strict=True))
    kept = [axis for axis in range(x.ndim) if axis not in drop]
    return Result(
        (x,),
        tuple(shape[axis] for axis in kept),
        x.dtype,
        {"parts": parts, "drop": tuple(drop)},
        tuple(strides[axis] for axis in kept),
        offset if 0 not in shape else 0,
    )


def index(x: Tensor, key: object) -> Tensor:
    """What `x[key]` records: a `slice` of every axis; a number picks and drops its axis.

    >>> index(tensor([[1.0, 2.0], [3.0, 4.0]]), (-1, Ellipsis)).numpy()
    array([3., 4.], dtype=float32)
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    n_dots = sum(k is Ellipsis for k in keys)
    if n_dots > 1 or len(keys) - n_dots > x.ndim:
        raise ShapeError(f"index: got {key!r} for shape {x.shape}, want at most one key per axis")
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    keys[at : at + 1] = [np.s_[:]] * (x.ndim - len(keys) + n_dots)
    parts, drop = [], []
    for axis, (k, n) in enumerate(zip(keys, x.shape, strict=True)):
        if isinstance(k, type(np.s_[:])):
            start, stop, step = k.indices(n)
            if step < 1:
                raise ShapeError(f"index: got step {step}, want steps of at least 1")
            parts.append((start, max(start, stop), step))
        elif isinstance(k, int | np.integer) and not -n <= k < n:
            raise PlaceError(f"index: got {k} for an axis of {n}, want {-n} to {n - 1}.")
        elif isinstance(k, int | np.integer):
            parts.append((int(k) % n, int(k) % n + 1, 1))
            drop.append(axis)
        else:
            raise ShapeError(f"index: got {k!r} for an axis of {n}, want a slice or a number.")
    return slice(x, tuple(parts), tuple(drop))
