"""What torch calls the ops that move elements: views, windows, sizes, rows; and attention.

Functions of an op's sources, then of its parameters by name. None: torch cannot make this call.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.torch_counterparts import pulled
from yupana.graphlib.ops.masks import alibi_slopes

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
F = torch.nn.functional

FLOATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def back_to(shape: tuple[int, ...], function: Callable[..., Any], g: Any) -> Any:
    """The gradient of a linear `function` of something of `shape`, times `g`."""
    return pulled(function, torch.zeros(shape, dtype=g.dtype), g)


WHOLE = {"i8": torch.int8, "i16": torch.int16, "i32": torch.int32}


def cast(x: Any, dtype: Any) -> Any:
    if dtype.name in WHOLE:
        limits = torch.iinfo(WHOLE[dtype.name])
        return x.trunc().clamp(limits.min, limits.max).to(WHOLE[dtype.name])
    return x.to(FLOATS[dtype.name]).to(x.dtype) if dtype.name in FLOATS else None


def sliced(x: Any, parts: Any, drop: Any) -> Any:
    return x[tuple(slice(*part) for part in parts)].squeeze(drop)


def seen(x: Any, shape: Any, strides: Any, offset: int, itemsize: int) -> Any:
    return torch.as_strided(x, shape, [s // itemsize for s in strides], offset // itemsize)


def view_back(g: Any, shape: Any, steps: Any, start: int) -> Any:
    zeros = torch.zeros(shape, dtype=g.dtype)
    return torch.as_strided_scatter(zeros, g, g.shape, steps, start) if g.numel() else zeros


def in_two_axes(window: Any, p: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A window and its settings with an axis of one place before a signal's."""
    if len(window) == 2:
        return window, p
    neutral = {"stride": 1, "padding": 0, "dilation": 1}
    return (1, *window), {name: (neutral[name], *value) for name, value in p.items()}


def im2col(x: Any, window: Any, **p: Any) -> Any:
    axes, outer = len(window), x.shape[: -len(window) - 1]
    window, p = in_two_axes(window, p)
    image = x[..., None, :] if axes == 1 else x
    columns = F.unfold(image, window, **p).mT
    sizes = zip(image.shape[-2:], window, p["stride"], p["padding"], p["dilation"], strict=True)
    places = [(n + 2 * before - d * (k - 1) - 1) // s + 1 for n, k, s, before, d in sizes]
    return columns.reshape(*outer, *places[2 - axes :], columns.shape[-1])


def im2col_back(g: Any, space: Any, window: Any, **p: Any) -> Any:
    axes, outer = len(window), g.shape[: g.ndim - len(window) - 1]
    window, p = in_two_axes(window, p)
    rows = g.reshape(*outer, math.prod(g.shape[len(outer) : -1]), g.shape[-1])
    image = F.fold(rows.mT, space if axes == 2 else (1, *space), window, **p)
    return image[..., 0, :] if axes == 1 else image


def padded(x: Any, padding: tuple[int, int], value: float) -> Any:
    """Planes (N, 1, H, W); torch's own pooling pads by half of a window at most."""
    planes = x.reshape(math.prod(x.shape[:-2]), 1, *x.shape[-2:])
    rows, columns = padding
    return F.pad(planes, (columns, columns, rows, rows), value=value)


def pooled(x: Any, kind: str, window: Any, stride: Any, padding: Any, count_padding: bool) -> Any:
    if kind == "max":
        y = F.max_pool2d(padded(x, padding, -math.inf), window, stride)
    else:
        y = F.avg_pool2d(padded(x, padding, 0.0), window, stride)
        if not count_padding:
            y = y / F.avg_pool2d(padded(torch.ones_like(x), padding, 0.0), window, stride)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


def at_largest(u: Any, x: Any, window: Any, stride: Any, padding: Any) -> Any:
    found = F.max_pool2d(padded(x, padding, -math.inf), window, stride, return_indices=True)[1]
    y = torch.take_along_dim(padded(u, padding, 0.0).flatten(2), found.flatten(2), -1)
    return y.reshape(*x.shape[:-2], *found.shape[-2:])


def interpolated(x: Any, n: int, axis: int, mode: str, align_corners: bool) -> Any:
    lines = x.movedim(axis, -1)
    flat = lines.reshape(math.prod(lines.shape[:-1]), 1, 1, lines.shape[-1])
    corners = None if mode == "nearest" else align_corners
    if not flat.numel():
        return x.new_zeros(*x.shape[:axis], n, *x.shape[axis + 1 :])
    way = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]
    y = F.interpolate(flat, size=(1, n), mode=way, align_corners=corners)
    return y.reshape(*lines.shape[:-1], n).movedim(-1, axis)


def interpolate_back(g: Any, n: int, axis: int, **p: Any) -> Any:
    size = g.shape[axis]
    shape = (*g.shape[:axis], n, *g.shape[axis + 1 :])
    return back_to(shape, lambda x: interpolated(x, size, axis, **p), g)


def reflected(x: Any, before: int, after: int) -> Any:
    flat = x.reshape(math.prod(x.shape[:-1]), 1, x.shape[-1])
    y = F.pad(flat, (before, after), mode="reflect")
    return y.reshape(*x.shape[:-1], y.shape[-1])


def reflected_back(g: Any, before: int, after: int) -> Any:
    shape = (*g.shape[:-1], g.shape[-1] - before - after)
    return back_to(shape, lambda x: reflected(x, before, after), g)


def with_rows(a: Any, b: Any, index: Any) -> Any:
    """Row by row, since torch leaves open which of two rows for one place counts."""
    index = index.expand(*b.shape[:-1])
    for m in range(b.shape[-2]):
        here = index[..., m, None, None] == torch.arange(a.shape[-2])[:, None]
        a = torch.where(here, b[..., m : m + 1, :], a)
    return a


def rows_back(g: Any, index: Any) -> Any:
    shape = (*g.shape[:-2], index.shape[-1], g.shape[-1])
    return back_to(shape, lambda b: with_rows(torch.zeros_like(g), b, index), g)


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    *,
    n_past: Any,
    scale: float,
    max_bias: float,
    logit_softcap: float,
) -> Any:
    """Rows with heads side by side, then the logarithm of each row's sum."""
    if q.ndim > 2 and k.shape[-3]:
        k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    added = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=q.dtype)
    if n_past is not None:
        rows, columns = (torch.arange(n) for n in added.shape[-2:])
        added = added.masked_fill(columns > n_past + rows[:, None], -math.inf)
    if mask is not None:
        heads = q.shape[-3] if q.ndim > 2 else 1
        slopes = alibi_slopes(heads, max_bias) if max_bias else [1.0] * heads
        slopes = torch.tensor(slopes, dtype=q.dtype)[:, None, None]
        added = added + mask * (slopes if q.ndim > 2 else slopes[0])
    blind = (added == -math.inf).all(-1, keepdim=True)
    added = added.masked_fill(blind, 0.0)
    scores = scale * q @ k.mT
    if logit_softcap:
        scores = logit_softcap * torch.tanh(scores / logit_softcap)
        rows = (scores + added).softmax(-1) @ v
    else:
        rows = F.scaled_dot_product_attention(q, k, v, added, scale=scale)
    rows = rows.masked_fill(blind, 0.0)
    sums = torch.logsumexp(scores + added, -1, keepdim=True).masked_fill(blind, -math.inf)
    side_by_side = rows.transpose(-2, -3) if rows.ndim > 2 else rows
    return torch.cat([side_by_side.reshape(-1), sums.reshape(-1)])


def attention_back(g: Any, y: Any, *sources: Any, **settings: Any) -> Any:
    q, k, v = (x.detach().requires_grad_() for x in sources[:3])
    found = attention(q, k, v, *sources[3:], **settings)
    if g.ndim > 1:  # of the rows alone
        g = (g.transpose(-2, -3) if g.ndim > 2 else g).reshape(-1)
        g = torch.cat([g, g.new_zeros(y.numel() - g.numel())])
    grads = torch.autograd.grad(found, (q, k, v), g)
    return torch.cat([(x.transpose(-2, -3) if x.ndim > 2 else x).reshape(-1) for x in grads])


def depthwise(w: Any, x: Any, **p: Any) -> Any:
    return F.conv2d(x, w, groups=x.shape[-3], **p)


def depthwise_weights(g: Any, x: Any, window: Any, **p: Any) -> Any:
    shape = (x.shape[-3], 1, *window)
    return back_to(shape, lambda w: depthwise(w, x, **p), g)


def depthwise_back(g: Any, w: Any, plane: Any, **p: Any) -> Any:
    shape = (*g.shape[:-2], *plane)
    return back_to(shape, lambda x: depthwise(w, x, **p), g)


def attention_cells(q: Any, k: Any, v: Any, cells: Any, *, scale: float, half: bool) -> Any:
    """A mask over the cells of all sequences, as llama.cpp has it."""
    assert not half, "torch does not round as llama.cpp does; see test_rounding.py"
    n_cells, group = k.shape[1], q.shape[1] // k.shape[2]
    q, k, v = q.transpose(0, 1), *(x.flatten(0, 1).transpose(0, 1) for x in (k, v))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))  # (H, S * N, …)
    cell, own = torch.arange(k.shape[1]), cells[:, None]
    seen = (cell // n_cells == own // n_cells) & (cell <= own) & (own >= 0) & (own < len(cell))
    blind = ~seen.any(-1, keepdim=True)
    y = F.scaled_dot_product_attention(q, k, v, seen | blind, scale=scale)
    return y.masked_fill(blind, 0.0).transpose(0, 1)


def sgd(x: Any, g: Any, settings: Any, scale: Any = None) -> Any:
    factor = 1.0 if scale is None else float(scale)
    x = x.detach().clone().requires_grad_()
    if math.isfinite(factor):
        x.grad = g.detach() * factor
        lr, decay = settings.tolist()
        torch.optim.SGD([x], lr, weight_decay=decay).step()
    return x.detach()


TORCH: dict[str, Callable[..., Any]] = {
    "cast": cast,
    "detach": torch.detach,
    "reshape": torch.reshape,
    "permute": lambda x, axes: x.permute(axes),
    "transpose": lambda x: x.mT,
    "slice": sliced,
    "view": seen,
    "view_back": view_back,
    "im2col": im2col,
    "im2col_back": im2col_back,
    "conv_2d_dw": depthwise,
    "conv_2d_dw_back": depthwise_back,
    "conv_2d_dw_weights": depthwise_weights,
    "pool_2d": pooled,
    "pool_2d_back": lambda g, x, **p: pulled(lambda x: pooled(x, **p), x, g),
    "pool_2d_at": at_largest,
    "interpolate": interpolated,
    "interpolate_back": interpolate_back,
    "pad_reflect_1d": reflected,
    "pad_reflect_1d_back": reflected_back,
    "set_rows": with_rows,
    "set_rows_back": rows_back,
    "flash_attn_packed": attention,
    "flash_attn_back": attention_back,
    "flash_attn_cells": attention_cells,
    "opt_step_sgd": sgd,
}
